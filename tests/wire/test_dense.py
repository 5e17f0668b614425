from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanfleet.errors import WireError
from leanfleet.wire import Message, decode, dense, describe, encode

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
names = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return (3 * values).to(draw(st.sampled_from(DTYPES)))


messages = st.builds(
    Message,
    st.dictionaries(names, tensors(), max_size=4),
    st.dictionaries(names, scalars, max_size=4),
)
SAMPLE = Message(
    {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2.5), "k": torch.tensor([1, 4])},
    {"macs": 12.5, "samples": 3, "late": False, "method": "distreal"},
)


@given(messages)
def test_round_trip_is_exact(message: Message) -> None:
    types = {name: type(value) for name, value in message.scalars.items()}
    data = encode(message)
    decoded = decode(data, expect=describe(message.tensors), scalars=types, max_bytes=len(data))
    assert decoded == message
    assert describe(decoded.tensors) == describe(message.tensors)


@given(messages)
def test_bytes_do_not_depend_on_the_order_of_names(message: Message) -> None:
    turned = Message(
        dict(reversed(message.tensors.items())),
        dict(reversed(message.scalars.items())),
    )
    assert turned == message
    assert encode(turned) == encode(message)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


@given(st.text(max_size=100) | st.recursive(st.none() | scalars, lambda s: st.dictionaries(names, s)))
def test_random_headers_are_refused(header: object) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    with pytest.raises(WireError):
        decode(len(text.encode()).to_bytes(8, "little") + text.encode())


@given(messages, st.data())
def test_truncated_bytes_are_refused(message: Message, choice: st.DataObject) -> None:
    data = encode(message)
    with pytest.raises(WireError):
        decode(data[: choice.draw(st.integers(0, len(data) - 1))])


@settings(max_examples=200)
@given(messages, st.data())
def test_flipped_bits_are_noticed_or_harmless(message: Message, choice: st.DataObject) -> None:
    data = bytearray(encode(message))
    for bit in choice.draw(st.sets(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=3)):
        data[bit // 8] ^= 1 << bit % 8
    try:
        decoded = decode(bytes(data))
    except WireError:
        return
    assert decoded == message


def test_every_single_flip_in_a_message_is_noticed_or_harmless() -> None:
    data = encode(SAMPLE)
    refused = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert decode(bytes(flipped)) == SAMPLE
        except WireError:
            refused += 1
    assert refused > 8 * len(data) * 0.9


def test_decoded_tensors_are_writable_and_own_their_memory() -> None:
    data = encode(SAMPLE)
    decode(data).tensors["w"].fill_(7)
    assert decode(data) == SAMPLE


def test_views_transposed_shared_and_channels_last_tensors() -> None:
    base = torch.randn(4, 3, 5, 5)
    message = Message(
        {
            "whole": base,
            "again": base,
            "row": base[1],
            "turned": base[:, :, 0, 0].T,
            "last": base.to(memory_format=torch.channels_last),
            "leaf": base.clone().requires_grad_(),
        }
    )
    assert decode(encode(message)) == message


EXPECT = describe(SAMPLE.tensors)
TYPES: dict[str, type] = {"macs": float, "samples": int, "late": bool, "method": str}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"expect": EXPECT | {"w": (torch.float32, (3, 2))}},
            r"tensor 'w': .* \(2, 3\) instead of .* \(3, 2\)",
        ),
        ({"expect": EXPECT | {"k": (torch.int32, (2,))}}, "tensor 'k': torch.int64 .* torch.int32"),
        ({"expect": EXPECT | {"v": (torch.int32, (2,))}}, "tensor 'v' is missing"),
        ({"expect": {"w": EXPECT["w"], "k": EXPECT["k"]}}, "tensor 'b' is not expected"),
        ({"scalars": TYPES | {"macs": int}}, "scalar 'macs': float instead of int"),
        ({"scalars": TYPES | {"samples": float}}, "scalar 'samples': int instead of float"),
        ({"scalars": TYPES | {"late": int}}, "scalar 'late': bool instead of int"),
        ({"scalars": TYPES | {"loss": float}}, "scalar 'loss' is missing"),
        ({"scalars": {}}, "scalar 'late' is not expected"),
        ({"max_bytes": 10}, "more than the 10 that are accepted"),
    ],
)
def test_what_is_not_expected_is_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(WireError, match=text):
        decode(encode(SAMPLE), **change)


def test_a_dimension_of_minus_one_may_have_any_size() -> None:
    free = EXPECT | {"w": (torch.float32, (-1, 3)), "k": (torch.int64, (-1,))}
    assert decode(encode(SAMPLE), expect=free) == SAMPLE
    with pytest.raises(WireError, match=r"tensor 'w': .* \(2, 3\) instead of .* \(-1, 2\)"):
        decode(encode(SAMPLE), expect=free | {"w": (torch.float32, (-1, 2))})
    with pytest.raises(WireError, match=r"tensor 'w': .* \(2, 3\) instead of .* \(-1,\)"):
        decode(encode(SAMPLE), expect=free | {"w": (torch.float32, (-1,))})


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype.is_floating_point])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_tensors_that_are_not_finite_are_named(dtype: torch.dtype, value: float) -> None:
    bad = torch.zeros(5, 5, dtype=dtype)
    bad[3, 2] = value
    with pytest.raises(WireError, match="tensor 'bad' is not finite"):
        decode(encode(Message({"good": torch.ones(2), "bad": bad})))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**63])
def test_scalars_that_are_not_finite_are_named(value: float) -> None:
    with pytest.raises(WireError, match="scalar 'macs'"):
        decode(encode(Message({}, {"macs": value})))


def test_truth_values_are_0_or_1() -> None:
    bad = torch.tensor([0, 2], dtype=torch.uint8).view(torch.bool)
    with pytest.raises(WireError, match="tensor 'mask': a truth value"):
        decode(encode(Message({"mask": bad})))


@pytest.mark.parametrize(
    "message",
    [
        Message({"__metadata__": torch.ones(1)}),
        Message({"w": torch.ones(1, dtype=torch.complex64)}),
        Message({}, {"macs": [1, 2]}),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_sent_is_refused_by_the_sender(message: Message) -> None:
    with pytest.raises(WireError, match="cannot be sent"):
        encode(message)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "{}",
        "[" * 100_000,
        "[]",
        '{"crc32": 0, "scalars": {}}',
        '{"crc32": 0, "scalars": 3}',
        '{"crc32": 0, "scalars": {"a": null}}',
        '{"crc32": 0, "scalars": {"a": {"b": 1}}}',
        '{"crc32": 0, "scalars": {"a": ' + "9" * 5000 + "}}",
        '{"crc32": 0, "scalars": {"a": 1e999}}',
    ],
)
def test_forged_metadata_is_refused(entry: str | None) -> None:
    metadata = {"leanfleet": entry} if entry is not None else None
    with pytest.raises(WireError) as caught:
        decode(safetensors.torch.save({"w": torch.ones(2)}, metadata))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(WireError, match="tensor 'w': dtype"):
        decode(safetensors.torch.save({"w": torch.ones(2).to(dtype)}))


@pytest.mark.parametrize("shape", [(0, 2**62, 2**62), (0, 2**63)])
def test_an_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    crc = dense._checksum({"w": (torch.float32, shape, b"")}, {})
    entry = json.dumps({"crc32": crc, "scalars": {}})
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    header = json.dumps({"__metadata__": {"leanfleet": entry}, "w": tensor}).encode()
    header += b" " * (-len(header) % 8)
    with pytest.raises(WireError, match="tensor 'w': impossible shape"):
        decode(len(header).to_bytes(8, "little") + header)


def test_a_long_header_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "MAX_HEADER_BYTES", 20)
    with pytest.raises(WireError, match="a header of"):
        decode(encode(SAMPLE))
