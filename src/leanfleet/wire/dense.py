"""The dense codec: a message as one safetensors file in memory, checked before it is trusted.

The header's metadata has a single entry, `leanfleet`: JSON with the scalars and a CRC-32 over names, dtypes,
shapes, values and scalars, so that a flipped bit on the way is noticed (it is no protection against an
attacker: that is the transport's task). One entry, because the order of several would differ between calls.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from leanfleet.errors import WireError
from leanfleet.storage import portable
from leanfleet.wire.message import Message, Scalar

Expected = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name -> (dtype, shape) of every tensor of a message. A dimension of -1 may have any size."""

MAX_HEADER_BYTES: Final = 16 * 2**20
"""Names, dtypes and shapes of some 100,000 tensors. Parsing costs far more memory than the header itself."""

_LENGTH_BYTES: Final = 8  # of the header's length, the first thing in a safetensors file
_ENTRY: Final = "leanfleet"
_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def encode(message: Message) -> bytes:
    """Return a message as bytes; equal messages give equal bytes.

    Raises:
        WireError: If a tensor's dtype or a scalar's type cannot be sent, or a tensor has the reserved name
            `__metadata__`.
    """
    tensors = portable(message.tensors)
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES.values() or name == "__metadata__":
            raise WireError(f"tensor '{name}': {tensor.dtype} under this name cannot be sent")
    for name, value in message.scalars.items():
        if type(value) not in (int, float, str, bool):
            raise WireError(f"scalar '{name}': {type(value).__name__} cannot be sent")
    buffers = {
        name: (tensor.dtype, tuple(tensor.shape), _bytes_of(tensor)) for name, tensor in tensors.items()
    }
    entry = {"crc32": _checksum(buffers, message.scalars), "scalars": message.scalars}
    return safetensors.torch.save(tensors, {_ENTRY: json.dumps(entry, sort_keys=True)})


def decode(
    data: bytes,
    expect: Expected | None = None,
    scalars: Mapping[str, type] | None = None,
    max_bytes: int | None = None,
) -> Message:
    """Return the message that `encode` made `data` of. Its tensors own their memory and may be written to.

    Args:
        data: The bytes as received, from anywhere.
        expect: What tensors there must be, exactly; None accepts any.
        scalars: What scalars there must be, exactly, and their types; None accepts any.
        max_bytes: The most that is accepted.

    Raises:
        WireError: If anything is not as expected, if a number is not finite, or if the bytes are damaged.
    """
    _check_size(data, max_bytes)
    buffers = _split(data)
    if expect is not None:
        _check_tensors(buffers, expect)
    crc32, received = _entry(data)
    _check_scalars(received, scalars)
    if crc32 != _checksum(buffers, received):
        raise WireError("the message was damaged on the way: its checksum does not fit")
    return Message({name: checked_tensor(name, *buffer) for name, buffer in buffers.items()}, received)


def describe(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return what `decode` is to expect of a message with tensors like these."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


_Buffer = tuple[torch.dtype, tuple[int, ...], Any]


def _check_size(data: bytes, max_bytes: int | None) -> None:
    if max_bytes is not None and len(data) > max_bytes:
        raise WireError(f"a message of {len(data)} bytes, more than the {max_bytes} that are accepted")
    header = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if header > MAX_HEADER_BYTES:
        raise WireError(f"not a message: a header of {header} bytes")


def _split(data: bytes) -> dict[str, _Buffer]:
    try:
        views = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise WireError(f"not a message: {error}") from error
    for name, view in views:
        if view["dtype"] not in _DTYPES:
            raise WireError(f"tensor '{name}': dtype {view['dtype']} is not accepted")
    return {name: (_DTYPES[view["dtype"]], tuple(view["shape"]), view["data"]) for name, view in views}


def _check_tensors(buffers: Mapping[str, _Buffer], expect: Expected) -> None:
    _check_names("tensor", buffers, expect)
    for name, (dtype, shape, _) in buffers.items():
        wanted_dtype, wanted = expect[name]
        fits = len(shape) == len(wanted) and all(w in (s, -1) for s, w in zip(shape, wanted, strict=True))
        if dtype != wanted_dtype or not fits:
            raise WireError(f"tensor '{name}': {dtype} {shape} instead of {wanted_dtype} {wanted}")


def _check_names(kind: str, names: Iterable[str], expected: Iterable[str]) -> None:
    there, wanted = set(names), set(expected)
    if missing := wanted - there:
        raise WireError(f"{kind} '{min(missing)}' is missing")
    if unexpected := there - wanted:
        raise WireError(f"{kind} {min(unexpected)!r} is not expected")


def _entry(data: bytes) -> tuple[int, dict[str, Scalar]]:
    # The header has been parsed once, so it is JSON; only the metadata cannot be had from `deserialize`.
    header = data[_LENGTH_BYTES : _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")]
    try:
        entry = json.loads(json.loads(header)["__metadata__"][_ENTRY])
        crc32, scalars = entry["crc32"], entry["scalars"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WireError("not a message: its header has no scalars and checksum") from error
    if not isinstance(scalars, dict):
        raise WireError("not a message: its scalars are not named")
    return crc32, scalars


def _check_scalars(received: Mapping[str, Scalar], expect: Mapping[str, type] | None) -> None:
    if expect is not None:
        _check_names("scalar", received, expect)
    for name, value in received.items():
        wanted = (int, float, str, bool) if expect is None else (expect[name],)
        if type(value) not in wanted:
            names = " or ".join(kind.__name__ for kind in wanted)
            raise WireError(f"scalar '{name}': {type(value).__name__} instead of {names}")
        if isinstance(value, float) and not math.isfinite(value):
            raise WireError(f"scalar '{name}' is not finite")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise WireError(f"scalar '{name}' does not fit into 64 bits")


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""


def _checksum(buffers: Mapping[str, _Buffer], scalars: Mapping[str, Scalar]) -> int:
    crc = zlib.crc32(json.dumps(scalars, sort_keys=True).encode())
    for name, (dtype, shape, data) in sorted(buffers.items()):
        crc = zlib.crc32(data, zlib.crc32(f"{name} {dtype} {shape}".encode(), crc))
    return crc


def checked_tensor(name: str, dtype: torch.dtype, shape: tuple[int, ...], data: Any) -> Tensor:
    """Return the tensor with these bytes, in whose memory it lives.

    Raises:
        WireError: If a value is not finite, or a truth value neither 0 nor 1.
    """
    if not len(data):
        try:
            return torch.empty(shape, dtype=dtype)
        except (RuntimeError, TypeError) as error:
            raise WireError(f"tensor '{name}': impossible shape {shape}") from error
    raw = torch.frombuffer(data, dtype=torch.uint8)
    if dtype == torch.bool and int(raw.max()) > 1:
        raise WireError(f"tensor '{name}': a truth value that is neither 0 nor 1")
    tensor = raw.view(dtype).reshape(shape)
    # One pass without a temporary; minimum and maximum are NaN as soon as one value is.
    if dtype.is_floating_point and not all(torch.isfinite(bound) for bound in tensor.aminmax()):
        raise WireError(f"tensor '{name}' is not finite")
    return tensor
