from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanfleet.errors import WireError
from leanfleet.wire import bits

position_sets = st.sets(st.integers(0, 5000), max_size=80).map(
    lambda drawn: np.array(sorted(drawn), dtype=np.int64)
)


def gaps_of(positions: bits.Integers) -> bits.Integers:
    return np.diff(positions, prepend=-1) - 1


@given(st.data(), st.integers(0, 40))
def test_fields_come_back_and_take_no_bit_more(data: st.DataObject, width: int) -> None:
    fields = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), max_size=30)), dtype=np.int64)
    packed = bits.pack_fields(fields, width)
    assert len(packed) == bits.field_bytes(len(fields), width) == math.ceil(len(fields) * width / 8)
    assert np.array_equal(bits.unpack_fields(packed, len(fields), width), fields)


def test_bits_after_the_last_field_are_refused() -> None:
    packed = bits.pack_fields(np.array([1, 2, 3]), 5)
    packed[-1] |= 128
    with pytest.raises(WireError, match="after the last"):
        bits.unpack_fields(packed, 3, 5)


@given(position_sets, st.integers(0, 12), st.binary(max_size=9))
def test_gaps_come_back_whatever_follows_them(positions: bits.Integers, parameter: int, rest: bytes) -> None:
    code = bits.rice_encode(gaps_of(positions), parameter)
    assert len(code) == bits.rice_bytes(gaps_of(positions), parameter)
    data = np.concatenate([code, np.frombuffer(rest, np.uint8)])
    if len(positions) << parameter <= 2 * 5001:
        decoded, used = bits.rice_decode(data, len(positions), parameter, 5001)
        assert np.array_equal(decoded, positions)
        assert used == len(code)


@given(position_sets)
def test_the_parameter_is_at_most_a_byte_worse_than_the_best(positions: bits.Integers) -> None:
    gaps = gaps_of(positions)
    best = min(bits.rice_bytes(gaps, parameter) for parameter in range(16))
    chosen = bits.rice_parameter(gaps)
    assert bits.rice_bytes(gaps, chosen) <= 1.05 * best + 1
    assert len(gaps) << chosen <= 2 * 5001


@pytest.mark.parametrize("density", [0.001, 0.003, 0.01, 0.03, 0.1])
def test_random_positions_cost_hardly_more_than_their_entropy(density: float) -> None:
    elements = 300_000
    count = int(density * elements)
    chosen = np.random.default_rng(0).choice(elements, count, replace=False)
    gaps = gaps_of(np.sort(chosen))
    cost = 8 * bits.rice_bytes(gaps, bits.rice_parameter(gaps))
    bound = math.lgamma(elements + 1) - math.lgamma(count + 1) - math.lgamma(elements - count + 1)
    assert 1 <= cost / (bound / math.log(2)) < 1.03


@settings(max_examples=300)
@given(st.binary(max_size=40), st.integers(0, 2**62), st.integers(0, 31), st.integers(0, 3000))
def test_any_bytes_are_ascending_positions_or_refused(
    data: bytes, count: int, parameter: int, below: int
) -> None:
    for wanted in (count, count % 50):
        try:
            positions, used = bits.rice_decode(np.frombuffer(data, np.uint8), wanted, parameter, below)
        except WireError:
            continue
        assert len(positions) == wanted
        assert used <= len(data)
        assert (np.diff(positions, prepend=-1) > 0).all()
        assert (positions < below).all()


@given(position_sets.filter(len), st.data())
def test_a_truncated_code_is_refused(positions: bits.Integers, data: st.DataObject) -> None:
    parameter = bits.rice_parameter(gaps_of(positions))
    code = bits.rice_encode(gaps_of(positions), parameter)
    with pytest.raises(WireError):
        bits.rice_decode(code[: data.draw(st.integers(0, len(code) - 1))], len(positions), parameter, 5001)


def test_a_position_past_the_end_is_refused() -> None:
    code = bits.rice_encode(np.array([3, 6]), 2)
    assert bits.rice_decode(code, 2, 2, 11)[0].tolist() == [3, 10]
    with pytest.raises(WireError, match="position 10 is not below 10"):
        bits.rice_decode(code, 2, 2, 10)
