"""Our messages inside Flower's."""

from __future__ import annotations

import math

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.engines.flower.messages import Registration, Result, Task, packed, payload_of
from leanfleet.errors import WireError

GOOD = {"device": 3, "own": False, "samples": 10, "rate_macs_per_s": 1e9, "seconds": 2.0}


@given(st.binary(max_size=2000))
def test_a_payload_arrives_as_it_was_sent(data):
    assert payload_of(packed({}, data)) == data


@given(st.integers(0, 10**18), st.floats(0, 1e18), st.floats(0, 1e18))
def test_values_arrive_as_they_were_sent(round, start, seconds):
    task = Task(round, start, seconds)
    assert Task.read(task.packed(b"payload")) == task


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"samples": -1}, "claims a samples of -1"),
        ({"rate_macs_per_s": math.nan}, "claims a rate_macs_per_s of nan"),
        ({"seconds": math.inf}, "claims a seconds of inf"),
        ({"rate_macs_per_s": 1e308}, r"claims a rate_macs_per_s of 1e\+308"),
        ({"samples": 1.5}, "samples is a float, not a int"),
        ({"own": 1}, "own is a int, not a bool"),
        ({"more": 1}, "its values are"),
    ],
)
def test_values_that_make_no_sense_are_refused(change, told):
    with pytest.raises(WireError, match=told):
        Registration.read(RecordDict({"leanfleet": ConfigRecord({**GOOD, **change})}))


def test_a_message_that_is_not_ours_is_refused():
    with pytest.raises(WireError):
        Registration.read(RecordDict({}))
    other = Array("uint8", (1,), "leanfleet", b"x")
    with pytest.raises(WireError):
        payload_of(RecordDict({"payload": ArrayRecord({"payload": other, "more": other})}))


def test_a_device_says_why_in_few_words():
    told = Result(0.0, 0.0, True, 0.0, 0.0, b"", 0.0, "x" * 1000)
    with pytest.raises(WireError, match="a state of 1000 characters"):
        Result.read(told.packed())
