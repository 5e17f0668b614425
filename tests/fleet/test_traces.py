"""Recorded availability."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.errors import DataError
from leanfleet.fleet.traces import Trace, load_traces


def test_a_trace_steps_at_its_times_and_holds_the_last_rate() -> None:
    trace = Trace((0.0, 2.0, 5.0), (1.0, 0.0, 0.5))
    assert [trace.rate(t) for t in (0, 1.9, 2, 4, 5, 1e9)] == [1, 1, 0, 0, 0.5, 0.5]
    assert [trace.next_change(t) for t in (0, 1.9, 2, 5)] == [2, 2, 5, math.inf]
    assert trace.scaled(10) == Trace((0.0, 2.0, 5.0), (10.0, 0.0, 5.0))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(1, 3))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rates: list[float], devices: int
) -> None:
    file = tmp_path_factory.mktemp("traces") / "fleet.csv"
    rows = [f"{d},{k * 1.5},ignored,{rate / (d + 1)}" for k, rate in enumerate(rates) for d in range(devices)]
    file.write_text("\n".join(["device,seconds,note,rate", *rows]))
    times = tuple(k * 1.5 for k in range(len(rates)))
    assert load_traces(file) == [
        Trace(times, tuple(rate / (d + 1) for rate in rates)) for d in range(devices)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column 'device'"),
        ("device,time,rate\na,0,1\n", "line 1: no column 'seconds'"),
        ("device,seconds,rate\n", "holds no traces"),
        ("device,seconds,rate\na,0,1\nb,1,1\n", "line 3: device 'b': its first time must be 0, not 1"),
        (
            "device,seconds,rate\na,0,1\na,5,1\na,5,1\n",
            "line 4: device 'a': its times must increase, but 5 follows 5",
        ),
        ("device,seconds,rate\na,0,1\na,inf,1\n", "line 3: device 'a': its times must increase"),
        ("device,seconds,rate\na,nan,1\n", "line 2: device 'a': its first time"),
        (
            "device,seconds,rate\na,0,-0.5\n",
            "line 2: device 'a': a rate must be finite and at least 0, not -0.5",
        ),
        ("device,seconds,rate\na,0,inf\n", "line 2: device 'a': a rate must be finite"),
        ("device,seconds,rate\na,0,nan\n", "line 2: device 'a': a rate must be finite"),
        ("device,seconds,rate\na,0,fast\n", "line 2: 'seconds' and 'rate' must be numbers.*fast"),
        ("device,seconds,rate\na,0\n", "line 2: 'seconds' and 'rate' must be numbers"),
        ("device,seconds,rate\n,0,1\n", "line 2: names no device"),
        ('device,seconds,rate\n"a,0,1\n', "cannot be read as a CSV file"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "fleet.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"fleet\.csv.*{message}") as caught:
        load_traces(file)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.csv"):
        load_traces(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary\.csv"):
        load_traces(tmp_path / "binary.csv")


@pytest.mark.parametrize(
    ("times", "rates"),
    [((), ()), ((0.0,), (1.0, 2.0)), ((1.0,), (1.0,)), ((0.0, 0.0), (1.0, 1.0)), ((0.0,), (-1.0,))],
)
def test_a_trace_checks_itself(times: tuple[float, ...], rates: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="a trace"):
        Trace(times, rates)
