from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanfleet.errors import WireError
from leanfleet.wire import (
    PACKED,
    Expected,
    Levels,
    Message,
    Payload,
    decode,
    encode,
    gather,
    layout_bytes,
    pack,
    sparse,
    unpack,
    whole,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]


@st.composite
def payloads(draw: st.DrawFn) -> Payload:
    """Anything that may be sent, values of zero at positions that are sent included."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    tensor = (9 * torch.randn(shape, generator=generator)).to(draw(st.sampled_from(DTYPES)))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 0.97, 1.0]))
    there = (torch.rand(tensor.numel(), generator=generator) < density).nonzero().reshape(-1)
    payload = draw(st.sampled_from([whole(tensor), sparse(tensor), gather(tensor, there)]))
    if draw(st.booleans()) and not (tensor.dtype.is_floating_point and draw(st.booleans())):
        return payload
    if draw(st.booleans()) and tensor.dtype.is_floating_point:
        per = draw(st.sampled_from(["tensor", "channel"]))
        return payload.rounded(draw(st.sampled_from(["bf16", "int8", "int4"])), per=per)
    return (
        leveled(payload, draw(st.integers(1, 16)), generator) if payload.dtype.is_floating_point else payload
    )


def leveled(payload: Payload, bits: int, generator: torch.Generator) -> Payload:
    levels = Levels(bits, signed=True)
    codes = torch.randint(-levels.largest, levels.largest + 1, payload.values.shape, generator=generator)
    codes = torch.where(codes == 0, 1, codes) if levels.binary else codes
    return replace(payload, values=codes.to(torch.int32), levels=levels, scales=torch.tensor([0.25]))


def expected(sent: dict[str, Payload]) -> Expected:
    return {name: (payload.dtype, payload.shape) for name, payload in sent.items()}


def assert_same(one: Payload, other: Payload) -> None:
    assert (one.shape, one.dtype, one.levels) == (other.shape, other.dtype, other.levels)
    for mine, theirs in zip(fields(one), fields(other), strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def fields(payload: Payload) -> list[Tensor]:
    there = [] if payload.positions is None else [payload.positions]
    return [payload.values, payload.scales, *there]


messages = st.dictionaries(st.text(max_size=3), payloads(), max_size=5)


@settings(max_examples=200)
@given(messages)
def test_what_is_unpacked_is_what_was_packed(sent: dict[str, Payload]) -> None:
    received = unpack(pack(sent), expected(sent))
    assert received.keys() == sent.keys()
    for name, payload in sent.items():
        assert_same(received[name], payload)
        assert torch.equal(received[name].dense(), payload.dense())


@given(messages)
def test_the_order_of_names_makes_no_difference(sent: dict[str, Payload]) -> None:
    assert torch.equal(pack(dict(reversed(sent.items()))), pack(sent))


@given(payloads())
def test_the_shortest_layout_is_taken(payload: Payload) -> None:
    assume(payload.numel < 128)
    header_bytes = 4 + 4 * len(payload.scales)
    assert len(pack({"v": payload})) == header_bytes + min(layout_bytes(payload).values())


@given(messages.filter(bool), st.data())
def test_truncated_bytes_are_refused(sent: dict[str, Payload], data: st.DataObject) -> None:
    packed = pack(sent)
    with pytest.raises(WireError):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))], expected(sent))


@given(messages, st.binary(min_size=1, max_size=4))
def test_bytes_too_many_are_refused(sent: dict[str, Payload], rest: bytes) -> None:
    packed = torch.cat([pack(sent), torch.tensor(list(rest), dtype=torch.uint8)])
    with pytest.raises(WireError, match="bytes too many"):
        unpack(packed, expected(sent))


def harmless_or_refused(packed: Tensor, expect: Expected) -> None:
    try:
        received = unpack(packed, expect)
    except WireError:
        return
    assert expected(received) == expect
    for payload in received.values():
        assert payload.dense().shape == payload.shape
        assert payload.dtype == torch.bool or payload.dense().isfinite().all()
        if payload.positions is not None:
            assert (payload.positions.diff() > 0).all()
            assert ((payload.positions >= 0) & (payload.positions < payload.numel)).all()


@settings(max_examples=200)
@given(messages.filter(bool), st.data())
def test_damaged_bytes_are_refused_or_payloads_as_expected(
    sent: dict[str, Payload], data: st.DataObject
) -> None:
    packed = pack(sent)
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    harmless_or_refused(packed, expected(sent))


@settings(max_examples=200)
@given(
    st.binary(max_size=60),
    st.dictionaries(
        st.text(max_size=2),
        st.tuples(st.sampled_from([*DTYPES, torch.bool]), st.lists(st.integers(0, 9), max_size=3).map(tuple)),
        max_size=3,
    ),
)
def test_any_bytes_are_refused_or_payloads_as_expected(data: bytes, expect: Expected) -> None:
    harmless_or_refused(torch.tensor(list(data), dtype=torch.uint8), expect)


HUGE: Expected = {"v": (torch.float32, (2**20, 2**20))}


@pytest.mark.parametrize("layout", [0, 1, 2, 3, 4, 5, 20, 35, 36, 255])
@pytest.mark.parametrize("number_format", [0, 1, 128, 192, 199, 207, 224])
def test_absurd_counts_are_refused_before_memory_is_spent(number_format: int, layout: int) -> None:
    for count in ([255] * 8 + [127], [255] * 9, [128, 128, 128, 128, 128, 16]):
        data = [1, number_format, layout, *count, *[255] * 300]
        with pytest.raises(WireError, match="packed tensors, from 'v' on"):
            unpack(torch.tensor(data, dtype=torch.uint8), HUGE)


SENT = {"a": sparse(torch.tensor([0.0, 1, 0, 2])), "b": whole(torch.ones(2)), "c": whole(torch.arange(2))}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"a": (torch.float32, (3,))}, "packed tensors"),
        ({"c": (torch.int32, (2,))}, "packed tensors: 8 bytes too many"),
        ({"a": (torch.int64, (4,))}, "from 'a' on"),
        ({"d": (torch.float32, (2,))}, "from 'd' on: 0 bytes where 1 are needed"),
    ],
)
def test_what_is_not_expected_is_refused(change: Expected, text: str) -> None:
    with pytest.raises(WireError, match=text):
        unpack(pack(SENT), {**expected(SENT), **change})


@pytest.mark.parametrize("packed", [torch.ones(3), torch.ones(1, 3, dtype=torch.uint8)])
def test_other_tensors_are_refused(packed: Tensor) -> None:
    with pytest.raises(WireError, match="a vector of bytes"):
        unpack(packed, {})


@pytest.mark.parametrize(
    "payload",
    [
        Payload((2,), torch.float32, None, torch.tensor([1.0, float("nan")])),
        Payload((2,), torch.float32, None, torch.tensor([1, 2]).int(), Levels(8, True), torch.tensor([3e38])),
        Payload(
            (1,), torch.float32, None, torch.tensor([0]).int(), Levels(8, True), torch.tensor([torch.inf])
        ),
        Payload((1,), torch.float16, None, torch.tensor([1e9]).bfloat16()),
    ],
)
def test_what_is_not_finite_when_decoded_is_refused(payload: Payload) -> None:
    with pytest.raises(WireError, match="finite"):
        unpack(pack({"v": payload}), expected({"v": payload}))


@pytest.mark.parametrize("field", [255, 15])
def test_levels_that_do_not_exist_are_refused(field: int) -> None:
    levels = Levels(8 if field == 255 else 4, signed=True)
    payload = Payload((1,), torch.float32, None, torch.zeros(1).int(), levels, torch.ones(1))
    packed = pack({"v": payload})
    packed[-1] = field
    with pytest.raises(WireError, match="levels"):
        unpack(packed, expected({"v": payload}))


def test_a_network_of_small_layers_pays_for_one_header() -> None:
    layers = {f"layer{index}": gather(torch.ones(64), torch.tensor([7])) for index in range(65)}
    header_bytes = 4
    assert len(pack(layers)) <= header_bytes + 65 * 4 + 65 * 7 / 8 + 2


def test_inside_a_message() -> None:
    message = Message({"packed": pack(SENT), "labels": torch.arange(3)}, {"weight": 0.5})
    expect: Expected = {"packed": PACKED, "labels": (torch.int64, (3,))}
    received = decode(encode(message), expect, {"weight": float})
    for name, payload in unpack(received.tensors["packed"], expected(SENT)).items():
        assert_same(payload, SENT[name])
    with pytest.raises(WireError, match=r"'packed': torch.int64 \(3,\) instead of torch.uint8 \(-1,\)"):
        decode(encode(Message({"packed": torch.arange(3)})), {"packed": PACKED})
    with pytest.raises(WireError, match=r"instead of torch.uint8 \(-1,\)"):
        decode(encode(Message({"packed": pack(SENT).reshape(1, -1)})), {"packed": PACKED})
