import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from leanfleet.report import group, read, render, summarise
from leanfleet.report.tables import percent, precise, quantity, seconds

Make = Callable[..., Path]

_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


def shown(folders: list[Path], width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        for table in render(summarise(group(read(folders))), width):
            console.print(table)
    return capture.get()


def test_fixed_times_are_the_quarters_of_the_shortest_run(make: Make) -> None:
    tables = summarise(group(read([make("distreal", rounds=20), make("fedavg", rounds=40)])))
    assert tables["seconds_virtual"] == [5.0, 10.0, 15.0, 20.0]
    row = tables["groups"][1]
    (record,) = read([make("fedavg", 0, rounds=40, name="again")])
    expected = [record.accuracy_at(t) for t in (5.0, 10.0, 15.0, 20.0)]
    assert [spread["mean"] for spread in row["accuracy_at"]] == expected


def test_mean_and_sample_deviation_over_seeds(make: Make) -> None:
    folders = [make(seed=seed, top=top) for seed, top in enumerate((0.6, 0.7, 0.8))]
    row, *_ = summarise(group(read(folders)))["groups"]
    last = [read([folder])[0].totals["accuracy"] for folder in folders]
    assert row["seeds"] == [0, 1, 2]
    assert row["accuracy"]["mean"] == pytest.approx(last[1])
    assert row["accuracy"]["std"] == pytest.approx(last[2] - last[1])
    assert row["accuracy_recalibrated"]["mean"] == pytest.approx(0.99 * last[1])
    assert row["bytes_down"] == {"mean": 100_000.0, "std": 0.0}


def test_one_run_has_no_deviation(make: Make) -> None:
    row, *_ = summarise(group(read([make()])))["groups"]
    assert row["accuracy"]["std"] is None


def test_a_mean_is_of_all_runs_or_none(make: Make) -> None:
    row, *_ = summarise(group(read([make(seed=0), make(seed=1, finished=False)])))["groups"]
    assert row["accuracy_recalibrated"] is None
    assert row["accuracy"] is not None


def test_unfinished_and_unlimited_runs_are_noted(make: Make) -> None:
    notes = summarise(group(read([make("distreal", finished=False), make("fedavg")])))["notes"]
    assert "not finished yet: distreal-s0" in notes
    assert any(note.startswith("fedavg: every device is given the means") for note in notes)


def test_updates_that_were_left_out_are_noted(make: Make) -> None:
    folder = make(rounds=2)
    lines = [{"round": n, "rejected": [f"device {n}: not finite"], "seconds_virtual": n} for n in (3, 4)]
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    note = "distreal-s0: updates left out: 2, the first in round 3 (device 3: not finite)"
    assert note in summarise(group(read([folder])))["notes"]


def test_tables_are_plain_values(make: Make) -> None:
    tables = summarise(group(read([make(), make("small", rounds=0, finished=False)])))
    assert json.loads(json.dumps(tables)) == tables


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_width_loses_a_number_or_a_name(make: Make, width: int) -> None:
    folders = [make(method, seed) for method in ("distreal", "federated-dropout") for seed in range(2)]
    text = shown(folders, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for word in ("federated-dropout", "at 20 s", "final B", "20.0 G", "100 kB", "25.0±0.0"):
        assert word in text


def test_a_record_without_a_round_shows_as_dashes(make: Make) -> None:
    text = shown([make(rounds=0, finished=False)], 80)
    assert re.search(r"^distreal +- +- *$", text, re.MULTILINE)


def test_columns_that_nobody_fills_are_left_out(make: Make) -> None:
    split = make("adasplit", rounds=4, facts={"server_macs": 7e9, "accuracy_recalibrated": None})
    alone = shown([split], 200)
    assert "final " in alone
    assert "final B" not in alone
    assert "7.00 G" in alone
    both = shown([split, make(rounds=4)], 200)
    assert re.search(r"^adasplit .* - *$", both, re.MULTILINE)
    assert "final B" in both
    assert "of server" not in shown([make()], 200)
    late = shown([make(rounds=8, eval_every=6)], 200)
    assert ("at 6 s" in late, "at 4 s" in late) == (True, False)


@given(st.floats(0, 1e21))
def test_quantities_keep_three_digits(value: float) -> None:
    text = quantity({"mean": value, "std": None}, "B")
    number, prefix = re.fullmatch(r"([\d.]+) ([kMGTPE]?)B", text).groups()  # type: ignore[union-attr]
    assert float(number) * _FACTORS[prefix] == pytest.approx(value, rel=0.0051, abs=0.5)
    assert len(number) <= 4


def test_how_numbers_are_written() -> None:
    assert percent({"mean": 0.93142, "std": 0.004}) == "93.1±0.4"
    assert percent({"mean": 1.0, "std": None}) == "100.0"
    assert percent(None) == quantity(None) == "-"
    assert quantity({"mean": 72_364_032, "std": None}) == "72.4 M"
    assert quantity({"mean": 12, "std": None}) == "12"
    assert (precise(84.64e9, "B"), precise(1.0, "B"), precise(5_384_503_296_000)) == (
        "84.64 GB",
        "1 B",
        "5.3845 T",
    )
    assert [seconds(t) for t in (7.5, 60.0, 12_345.6)] == ["7.5 s", "60 s", "12,346 s"]
