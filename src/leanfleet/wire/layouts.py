"""Where the values of a payload stand: five ways to write that down, and which is the shortest.

    all        every value, nothing absent
    holes      every element; what is zero was not sent
    bitmap     a bit for each element
    positions  ceil(log2 elements) bits for each value
    gaps       Rice code of the gaps; 4 + its parameter is the layout's number

For 4-byte values the bitmap loses to holes only above 31/32 non-zeros, and to positions only below 1/18
(elements = 163,840), so it is what half-empty activations take; top-k messages take gaps.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from leanfleet.errors import WireError
from leanfleet.wire import bits
from leanfleet.wire.bits import Bytes, Integers, field_bytes
from leanfleet.wire.payload import Payload

ALL, HOLES, BITMAP, POSITIONS, GAPS = range(5)
LAST: Final = GAPS + bits.MAX_RICE_PARAMETER
_NAMES: Final = ("all", "holes", "bitmap", "positions", "gaps")


def layout_bytes(payload: Payload) -> dict[str, int]:
    """Return the bytes of values and positions for each possible layout; `pack` takes the least.

    Not included are a run's header (2 bytes and two varints) and scales, which do not differ.

    Raises:
        WireError: If positions are not ascending or not inside the tensor.
    """
    return {_NAMES[min(layout, GAPS)]: length for layout, length in layout_lengths(payload).items()}


def layout_lengths(payload: Payload) -> dict[int, int]:
    """Return layout -> bytes of values and positions; of equals the first is taken."""
    elements, count = payload.numel, len(payload.values)
    width = 8 * payload.values.element_size() if payload.levels is None else payload.levels.bits
    if payload.positions is None:
        return {ALL: field_bytes(elements, width)}
    gaps, values = _gaps(payload.positions.numpy(), elements), field_bytes(count, width)
    lengths = {}
    if not (payload.levels and payload.levels.binary) and bool((payload.values != 0).all()):
        lengths[HOLES] = field_bytes(elements, width)
    lengths[BITMAP] = field_bytes(elements, 1) + values
    lengths[POSITIONS] = field_bytes(count, _position_bits(elements)) + values
    # With half of all elements there, no Rice code is shorter than the bitmap.
    if 2 * count < elements:
        parameter = bits.rice_parameter(gaps)
        lengths[GAPS + parameter] = bits.rice_bytes(gaps, parameter) + values
    return lengths


def write_positions(layout: int, positions: Integers, elements: int) -> Bytes:
    """Return positions as bitmap, fixed-width fields or Rice-coded gaps."""
    if layout == BITMAP:
        bitmap = np.zeros(elements, np.uint8)
        bitmap[positions] = 1
        return np.packbits(bitmap, bitorder="little")
    if layout == POSITIONS:
        return bits.pack_fields(positions, _position_bits(elements))
    return bits.rice_encode(_gaps(positions, elements), layout - GAPS)


def read_positions(layout: int, data: Bytes, count: int, elements: int) -> tuple[Integers, int]:
    """Return `count` ascending positions below `elements`, and how many bytes of `data` they took.

    Raises:
        WireError: If the bytes hold anything else.
    """
    if layout >= GAPS:
        return bits.rice_decode(data, count, layout - GAPS, elements)
    width = _position_bits(elements)
    used = field_bytes(elements, 1) if layout == BITMAP else field_bytes(count, width)
    if len(data) < used:
        raise WireError("the bytes end before the positions")
    if layout == BITMAP:
        positions = np.flatnonzero(np.unpackbits(data[:used], bitorder="little"))
    else:
        positions = bits.unpack_fields(data[:used], count, width)
    if len(positions) != count:
        raise WireError(f"a bitmap of {len(positions)} values instead of {count}")
    _gaps(positions, elements)
    return positions, used


def _gaps(positions: Integers, elements: int) -> Integers:
    """Return how many elements are skipped before each position.

    Raises:
        WireError: If positions are not ascending or not inside the tensor.
    """
    gaps: Integers = np.diff(positions, prepend=-1) - 1
    if len(gaps) and (int(gaps.min()) < 0 or int(positions[-1]) >= elements):
        raise WireError(f"positions are not ascending and below {elements}")
    return gaps


def _position_bits(elements: int) -> int:
    return max(elements - 1, 0).bit_length()
