"""Whole numbers as bits: fields of a fixed width, and Rice codes of the gaps between ascending positions.

A Rice code with parameter b writes a gap in two parts: the low b bits as they are, the rest in unary. The
parts are kept in two streams, one after the other: as many bits as if they alternated, and no loop over gaps.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from leanfleet.errors import WireError

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

MAX_RICE_PARAMETER: Final = 31


def field_bytes(count: int, width_bits: int) -> int:
    """Return how many bytes `count` fields of this width take."""
    return (count * width_bits + 7) // 8


def pack_fields(fields: npt.NDArray[Any], width_bits: int) -> Bytes:
    """Return non-negative integers below 2^width as `field_bytes` bytes.

    The low bits of all fields come first, a plane of bytes for every eight, then what is left of each.
    """
    whole, rest = width_bits // 8 * 8, width_bits % 8
    planes = [(fields >> shift).astype(np.uint8) for shift in range(0, whole, 8)]
    return np.concatenate([*planes, _pack_narrow(fields >> whole, rest)])


def unpack_fields(data: Bytes, count: int, width_bits: int) -> Integers:
    """Return what `pack_fields` made `data` of; there must be exactly `field_bytes` bytes.

    Raises:
        WireError: If a bit after the last field is set.
    """
    whole, rest = width_bits // 8 * 8, width_bits % 8
    fields = _unpack_narrow(data[count * whole // 8 :], count, rest) << whole
    for plane in range(whole // 8):
        fields |= data[plane * count : (plane + 1) * count].astype(np.int64) << 8 * plane
    return fields


def rice_parameter(gaps: Integers) -> int:
    """Return the parameter with the shortest code, which lies next to log2 of the mean gap times ln 2."""
    mean = float(gaps.mean()) if len(gaps) else 0.0
    guess = int(np.log2(max(mean * np.log(2), 1.0)))
    candidates = range(max(guess - 1, 0), min(guess + 1, MAX_RICE_PARAMETER) + 1)
    return min(candidates, key=lambda parameter: rice_bytes(gaps, parameter))


def rice_bytes(gaps: Integers, parameter: int) -> int:
    """Return the length of `rice_encode`."""
    unary_bits = len(gaps) + int((gaps >> parameter).sum())
    return field_bytes(len(gaps), parameter) + field_bytes(unary_bits, 1)


def rice_encode(gaps: Integers, parameter: int) -> Bytes:
    """Return the low bits of all gaps, then in unary what is left: so many zeros and a one."""
    ones = np.cumsum((gaps >> parameter) + 1) - 1
    unary = np.zeros(int(ones[-1]) + 1 if len(ones) else 0, np.uint8)
    unary[ones] = 1
    low = pack_fields(gaps & ((1 << parameter) - 1), parameter)
    return np.concatenate([low, np.packbits(unary, bitorder="little")])


def rice_decode(data: Bytes, count: int, parameter: int, below: int) -> tuple[Integers, int]:
    """Return ascending positions, and how many bytes at the front of `data` their gaps took.

    Args:
        data: What `rice_encode` returned, and possibly more.
        count: How many gaps there are.
        parameter: The one they were encoded with.
        below: Every position is less than this. At most so much of `data` is looked at as can be needed.

    Raises:
        WireError: If the bytes end too early, or a position is not below the limit.
    """
    low_bytes = field_bytes(count, parameter)
    # No encoder picks a larger parameter, and no sum of gaps can overflow under this one.
    if len(data) < low_bytes or count << parameter > 2 * below:
        raise WireError(f"{count} gaps of {parameter} bits and more do not fit")
    unary = data[low_bytes : low_bytes + field_bytes(count + (below >> parameter), 1)]
    ones = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
    used = field_bytes(int(ones[count - 1]) + 1, 1) if 0 < count <= len(ones) else 0
    if count > len(ones) or bool((ones[count:] < 8 * used).any()):
        raise WireError(f"the code does not hold {count} gaps")
    high = np.diff(ones[:count], prepend=-1) - 1
    positions = np.cumsum((high << parameter) + unpack_fields(data[:low_bytes], count, parameter) + 1) - 1
    if count and int(positions[-1]) >= below:
        raise WireError(f"position {positions[-1]} is not below {below}")
    return positions, low_bytes + used


def _pack_narrow(fields: npt.NDArray[Any], width_bits: int) -> Bytes:
    """Eight fields of fewer than eight bits share one 64-bit word."""
    padded = np.zeros((-(-len(fields) // 8), 8), np.uint64)
    padded.reshape(-1)[: len(fields)] = fields
    words = np.zeros(len(padded), "<u8")
    for column in range(8):
        words |= padded[:, column] << np.uint64(column * width_bits)
    packed = words.view(np.uint8).reshape(-1, 8)[:, :width_bits]
    return packed.reshape(-1)[: field_bytes(len(fields), width_bits)]


def _unpack_narrow(data: Bytes, count: int, width_bits: int) -> Integers:
    packed = np.zeros((-(-count // 8), width_bits), np.uint8)
    packed.reshape(-1)[: len(data)] = data
    padded = np.zeros((len(packed), 8), np.uint8)
    padded[:, :width_bits] = packed
    words = padded.reshape(-1).view("<u8")
    fields = np.empty((len(words), 8), np.int64)
    for column in range(8):
        fields[:, column] = words >> np.uint64(column * width_bits) & np.uint64((1 << width_bits) - 1)
    if fields.reshape(-1)[count:].any():
        raise WireError("a bit after the last field is set")
    return fields.reshape(-1)[:count]
