"""Payloads as bytes, so that sparse and quantised tensors travel inside a message like any other tensor.

    message = Message({"packed": pack(payloads), "labels": labels}, scalars)
    message = decode(data, expect={"packed": PACKED, "labels": ...})
    payloads = unpack(message.tensors["packed"], expect=describe(tensors_they_stand_for))

Tensors that follow each other in the order of their names and are sent in the same way (dtype, number format,
all or some positions) form a run, which is coded as one long vector: a network of many small layers pays for
one header and one Rice parameter instead of one for each layer. What differs in density is better packed by
itself, in a tensor of its own. The bytes of a run (`layouts` tells what layouts there are):

    number of tensors | number format | layout | number of values | scales  | values | positions
    varint            | 1 byte        | 1 byte | varint           | float32 |        |

Numbers are little-endian. What the receiver unpacks is, field by field, what the sender packed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from leanfleet.errors import WireError
from leanfleet.wire.bits import Bytes, field_bytes, pack_fields, unpack_fields
from leanfleet.wire.dense import Expected, checked_tensor
from leanfleet.wire.layouts import (
    ALL,
    HOLES,
    LAST,
    layout_lengths,
    read_positions,
    write_positions,
)
from leanfleet.wire.payload import Levels, Payload, finite, nonzero, scale_count

PACKED: Final = (torch.uint8, (-1,))
"""What `decode` is to expect of a tensor that `pack` returned."""

# Number formats: the tensor's own dtype, bfloat16, or levels, whose low four bits are their width less one.
_OWN, _BF16, _LEVELS, _SIGNED, _PER_CHANNEL = 0, 1, 128, 64, 32


def pack(payloads: Mapping[str, Payload]) -> Tensor:
    """Return payloads as a vector of bytes; the order of their names makes no difference.

    Raises:
        WireError: If the positions of a payload are not ascending or not inside its tensor.
    """
    pieces: list[Bytes] = [np.zeros(0, np.uint8)]
    for names in _runs(payloads):
        run = [payloads[name] for name in names]
        try:
            pieces += _write(_joined(run), len(run))
        except WireError as error:
            raise WireError(f"tensors '{names[0]}' to '{names[-1]}': {error}") from error
    return torch.from_numpy(np.concatenate(pieces))


def unpack(packed: Tensor, expect: Expected) -> dict[str, Payload]:
    """Return the payloads that `pack` made the bytes of.

    Time and memory are bounded by the number of bytes, not by what they claim to hold. Only `Payload.dense`
    makes tensors of the expected shapes.

    Args:
        packed: Bytes as received, from anywhere [bytes].
        expect: The dtype and shape of every tensor.

    Raises:
        WireError: If the bytes are not payloads for exactly these tensors, or a number is not finite.
    """
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise WireError(f"packed tensors are a vector of bytes, not {packed.dim()}-d {packed.dtype}")
    reader = _Reader(packed.numpy())
    left = sorted(expect)
    payloads: dict[str, Payload] = {}
    while left:
        try:
            tensors = reader.varint()
            if not 1 <= tensors <= len(left):
                raise WireError(f"{tensors} more tensors instead of {len(left)}")
            payloads |= _read(reader, {name: expect[name] for name in left[:tensors]})
        except WireError as error:
            raise WireError(f"packed tensors, from '{left[0]}' on: {error}") from error
        del left[:tensors]
    if len(reader.rest):
        raise WireError(f"packed tensors: {len(reader.rest)} bytes too many")
    return payloads


def _runs(payloads: Mapping[str, Payload]) -> Iterator[list[str]]:
    def way(name: str) -> tuple[object, ...]:
        payload = payloads[name]
        return payload.dtype, payload.values.dtype, payload.levels, payload.positions is None

    for _, names in itertools.groupby(sorted(payloads), key=way):
        yield list(names)


def _joined(run: Sequence[Payload]) -> Payload:
    """The tensors of a run as one vector; their scales stand one after the other."""
    starts = list(itertools.accumulate((payload.numel for payload in run), initial=0))
    positions = [
        payload.positions + start
        for payload, start in zip(run, starts, strict=False)
        if payload.positions is not None
    ]
    return Payload(
        (starts[-1],),
        run[0].dtype,
        torch.cat(positions) if positions else None,
        torch.cat([payload.values for payload in run]),
        run[0].levels,
        torch.cat([payload.scales for payload in run]),
    )


def _parted(joined: Payload, expect: Expected) -> dict[str, Payload]:
    """The inverse of `_joined`."""
    shapes = [shape for _, shape in expect.values()]
    starts = torch.tensor(list(itertools.accumulate(map(math.prod, shapes), initial=0)))
    cuts = starts if joined.positions is None else torch.searchsorted(joined.positions, starts)
    scales = torch.split(joined.scales, _scale_counts(expect, joined.levels))
    payloads = {}
    for index, name in enumerate(expect):
        part = slice(int(cuts[index]), int(cuts[index + 1]))
        positions = None if joined.positions is None else joined.positions[part] - starts[index]
        payloads[name] = Payload(
            shapes[index], joined.dtype, positions, joined.values[part], joined.levels, scales[index]
        )
    return payloads


def _scale_counts(expect: Expected, levels: Levels | None) -> list[int]:
    return [scale_count(shape, levels) if levels else 0 for _, shape in expect.values()]


def _write(run: Payload, tensors: int) -> list[Bytes]:
    lengths = layout_lengths(run)
    layout = min(lengths, key=lengths.__getitem__)
    header = _varint(tensors) + bytes([_format(run), layout]) + _varint(len(run.values))
    values, positions = run.values, np.zeros(0, np.uint8)
    if layout == HOLES and run.positions is not None:
        values = torch.zeros(run.numel, dtype=values.dtype).index_copy_(0, run.positions, values)
    elif layout != ALL and run.positions is not None:
        positions = write_positions(layout, run.positions.numpy(), run.numel)
    return [np.frombuffer(header, np.uint8), _raw(run.scales), _write_values(values, run.levels), positions]


def _read(reader: _Reader, expect: Expected) -> dict[str, Payload]:
    dtype = next(iter(expect.values()))[0]
    if any(other != dtype for other, _ in expect.values()):
        raise WireError("tensors of different dtypes in one run")
    values_dtype, levels = _parse_format(reader.byte(), dtype)
    layout, count = reader.byte(), reader.varint()
    elements = sum(math.prod(shape) for _, shape in expect.values())
    if layout > LAST or count > elements or (layout == ALL and count < elements):
        raise WireError(f"{count} of {elements} values in layout {layout}")
    scales = _tensor(reader.take(4 * sum(_scale_counts(expect, levels))), torch.float32)
    stored = elements if layout in (ALL, HOLES) else count
    values = _read_values(reader, stored, values_dtype, levels)
    positions = None
    if layout == HOLES:
        positions = nonzero(values)
        values = values[positions]
        if len(positions) != count:
            raise WireError(f"{len(positions)} values instead of {count}")
    elif layout != ALL:
        there, used = read_positions(layout, reader.rest, count, elements)
        positions = torch.from_numpy(there)
        reader.take(used)
    payloads = _parted(Payload((elements,), dtype, positions, values, levels, scales), expect)
    for payload in payloads.values() if levels or values_dtype != dtype else ():
        finite(payload.received())
    return payloads


def _format(run: Payload) -> int:
    if run.levels is None:
        return _OWN if run.values.dtype == run.dtype else _BF16
    signed, per_channel = _SIGNED * run.levels.signed, _PER_CHANNEL * run.levels.per_channel
    return _LEVELS + signed + per_channel + run.levels.bits - 1


def _parse_format(number: int, dtype: torch.dtype) -> tuple[torch.dtype, Levels | None]:
    if number == _OWN:
        return dtype, None
    if dtype.is_floating_point and number == _BF16:
        return torch.bfloat16, None
    if dtype.is_floating_point and number & _LEVELS and not number & 16:
        return torch.int32, Levels(number % 16 + 1, bool(number & _SIGNED), bool(number & _PER_CHANNEL))
    raise WireError(f"number format {number} for {dtype}")


def _write_values(values: Tensor, levels: Levels | None) -> Bytes:
    if levels is None:
        return _raw(values)
    # With one signed bit, -1 and 1 are written as 0 and 1.
    fields = values + levels.largest * levels.signed >> levels.binary
    return pack_fields(fields.numpy(), levels.bits)


def _read_values(reader: _Reader, count: int, dtype: torch.dtype, levels: Levels | None) -> Tensor:
    if levels is None:
        return _tensor(reader.take(count * dtype.itemsize), dtype)
    data = reader.take(field_bytes(count, levels.bits))
    fields = torch.from_numpy(unpack_fields(data, count, levels.bits)).to(torch.int32)
    values = (fields << levels.binary) - levels.largest * levels.signed
    if count and int(values.max()) > levels.largest:
        raise WireError(f"a number of more than {levels.largest} levels")
    return values


def _raw(tensor: Tensor) -> Bytes:
    data: Bytes = tensor.contiguous().view(torch.uint8).numpy()
    return data


def _tensor(data: Bytes, dtype: torch.dtype) -> Tensor:
    # A copy, because the slice may lie at any address and a tensor may not.
    return checked_tensor("values", dtype, (len(data) // dtype.itemsize,), data.copy())


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit tells that more follow."""
    if number < 128:
        return bytes([number])
    return bytes([number % 128 + 128]) + _varint(number // 128)


class _Reader:
    """Bytes that are taken from the front."""

    def __init__(self, data: Bytes) -> None:
        self.rest = data

    def take(self, count: int) -> Bytes:
        if count > len(self.rest):
            raise WireError(f"{len(self.rest)} bytes where {count} are needed")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def byte(self) -> int:
        return int(self.take(1)[0])

    def varint(self) -> int:
        number = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            number |= byte % 128 << shift
            if byte < 128:
                return number
        raise WireError("a count of more than 63 bits")
