import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leanfleet.errors import RecordError, UserError
from leanfleet.report import Ranking, group, rank, read, render_ranking
from leanfleet.report.score import terms_text

Make = Callable[..., Path]
Facts = dict[str, Any]

# Per cent, GB and client TF that AdaSplit's authors stored for Mixed-NonIID, with scores under two budgets of compute.
STORED = {
    "sl-basic": (84.65, 84.64, 3.76, 0.7340, 0.6845),
    "splitfed": (84.64, 84.54, 3.76, 0.7340, 0.6846),
    "masks-only": (89.38, 43.81, 3.76, 0.8232, 0.7677),
    "random": (88.74, 9.91, 5.38, 0.8527, 0.7717),
    "ucb": (88.88, 9.71, 5.38, 0.8543, 0.7732),
}


def facts(accuracy: float | None, gb: float = 1.0, tf: float = 1.0, **more: Any) -> Facts:
    spent = {"bytes_up": 0.75e9 * gb, "bytes_down": 0.25e9 * gb, "macs_total": 3e12 * tf}
    return {"accuracy": accuracy, **spent, **more}


def split(accuracy: float | None, gb: float = 1.0, tf: float = 1.0, authors: float = 0.5) -> Facts:
    return facts(accuracy, gb, tf, forward_macs=1e12 * tf, bytes_authors=1e9 * authors, family="split")


@pytest.fixture
def stored(make: Make) -> list[Path]:
    """Records with the stored numbers; each is a variant of one method."""
    return [
        make("adasplit", name=name, rounds=1, extra=f"gamma = 0.{n}1", facts=split(accuracy / 100, gb, tf))
        for n, (name, (accuracy, gb, tf, *_)) in enumerate(STORED.items())
    ]


def ranking(*folders: Path, **how: Any) -> Ranking:
    return rank(group(read(folders)), **how)


def scores(found: Ranking) -> dict[str, float]:
    return {row["label"]: row["c3"]["mean"] for row in found["groups"] if row["c3"]}


def shown(found: Ranking, width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        for table in render_ranking(found, width):
            console.print(table)
    return capture.get()


@pytest.mark.parametrize(("macs_max", "column"), [(26.68e12, 3), (5.38e12, 4)])
def test_the_stored_numbers_have_the_scores_derived_from_them(
    stored: list[Path], macs_max: float, column: int
) -> None:
    found = ranking(*stored, bytes_max=84.64e9, macs_max=macs_max)
    assert scores(found) == pytest.approx({name: row[column] for name, row in STORED.items()}, abs=6e-5)
    assert [row["label"] for row in found["groups"]][:3] == ["ucb", "random", "masks-only"]
    assert not any(row["over_budget"] for row in found["groups"])


def test_budgets_are_the_largest_consumption_unless_given(stored: list[Path], make: Make) -> None:
    alone = ranking(*stored)
    assert alone["terms"]["bytes_max"] == pytest.approx(84.64e9)
    assert (alone["terms"]["bytes_max_of"], alone["terms"]["macs_max_of"]) == ("sl-basic", "random")
    assert scores(alone) == pytest.approx({name: row[4] for name, row in STORED.items()}, abs=6e-5)

    fedavg = make("fedavg", facts=facts(0.9, 2.3923, 26.68))
    with_it = ranking(*stored, fedavg)
    assert with_it["terms"]["macs_max_of"] == "fedavg"
    assert scores(with_it)["ucb"] == pytest.approx(0.8543, abs=6e-5)
    assert any("scores change with who is compared" in note for note in with_it["notes"])
    given = ranking(*stored, fedavg, bytes_max=1e9, macs_max=1e9)
    assert (given["terms"]["bytes_max_of"], given["terms"]["macs_max_of"]) == (None, None)
    assert not any("scores change" in note for note in given["notes"])


def test_every_seed_is_scored_and_the_mean_counts(make: Make) -> None:
    folders = [make(seed=s, facts=facts(a, gb)) for s, (a, gb) in enumerate(((0.8, 1.0), (0.9, 3.0)))]
    found = ranking(*folders, bytes_max=4e9, macs_max=1e12, temperature=2.0)
    each = [0.8 * math.exp(-(0.25 + 1) / 2), 0.9 * math.exp(-(0.75 + 1) / 2)]
    assert [run["c3"] for run in found["runs"]] == pytest.approx(each)
    (row,) = found["groups"]
    assert row["c3"]["mean"] == pytest.approx(sum(each) / 2)
    assert row["c3"]["std"] == pytest.approx(abs(each[0] - each[1]) / math.sqrt(2))
    # The larger seed's share alone would flag a group that sets the budget itself.
    assert ranking(*folders)["groups"][0]["over_budget"] == []


def test_more_than_a_budget_is_scored_and_flagged(make: Make) -> None:
    found = ranking(make(facts=facts(0.9, 2.0, 0.5)), bytes_max=1e9, macs_max=1e12)
    assert scores(found) == {"distreal": pytest.approx(0.6584540661)}
    assert found["groups"][0]["over_budget"] == ["bytes"]
    for width in (40, 80):
        assert "2.00 GB !" in shown(found, width)
        assert "!: more than the budget" in shown(found, width)


def test_modes_say_what_is_counted(make: Make) -> None:
    folders = [make(facts=facts(0.9, 8.0, 4.0)), make("adasplit", facts=split(0.9, 2.0, 1.0, authors=1.5))]

    def spent(key: str, **how: Any) -> list[float]:
        return [run[key] for run in ranking(*folders, **how)["runs"]]

    assert spent("bytes") == [8e9, 2e9]
    assert spent("bytes", byte_mode="authors") == [8e9, 1.5e9]
    assert spent("client_macs") == [4e12, 1e12]
    assert spent("client_macs", compute_mode="training") == [12e12, 3e12]
    notes = ranking(*folders, byte_mode="authors")["notes"]
    assert "distreal: bytes are measured; there is no authors' count of them" in notes


def test_a_frozen_client_trains_nothing_yet_computes(make: Make) -> None:
    frozen = split(0.9) | {"macs_total": 1e12, "forward_macs": 1e12}
    (run,) = ranking(make("adasplit", facts=frozen))["runs"]
    assert run["client_macs"] == 1e12


def test_an_unfinished_run_stands_at_its_last_evaluation(make: Make) -> None:
    found = ranking(make(rounds=7, eval_every=3, finished=False))
    (run,) = found["runs"]
    assert (run["bytes"], run["client_macs"]) == (6 * 8000, 6e9 / 3)
    assert run["accuracy"] == run["best_accuracy"]
    assert run["c3"] is not None
    assert "not finished yet: distreal-s0" in found["notes"]


@pytest.mark.parametrize("how", [{"rounds": 0, "finished": False}, {"rounds": 2, "facts": facts(None)}])
def test_a_run_without_an_evaluation_has_no_score_and_sets_no_budget(make: Make, how: Facts) -> None:
    without = make("fedavg", **how)
    found = ranking(without, make(facts=facts(0.9, 0.5, 0.5)))
    assert [row["label"] for row in found["groups"]] == ["distreal", "fedavg"]
    assert found["terms"]["bytes_max"] == 0.5e9
    assert f"no score where a run was never evaluated: {without}" in found["notes"]
    assert "compared with nothing else, distreal gets 0.7788 of its accuracy" in found["notes"]

    nothing = ranking(without)
    assert (scores(nothing), nothing["terms"]["macs_max"]) == ({}, None)
    assert "macs_max: none, nothing could be scored" in terms_text(nothing)
    assert "fedavg" in shown(nothing, 80)


def test_whoever_sends_nothing_is_scored_too(make: Make) -> None:
    found = ranking(make("adasplit", facts=split(0.5, 0.0)))
    assert scores(found) == {"adasplit": pytest.approx(0.5 * math.exp(-1 / 8))}


@pytest.mark.parametrize("wrong", [{"bytes_max": 0.0}, {"macs_max": -1.0}, {"temperature": 0.0}])
def test_wrong_terms_are_refused_whatever_the_runs(make: Make, wrong: dict[str, float]) -> None:
    for folder in (make(), make("fedavg", rounds=0, finished=False)):
        with pytest.raises(UserError, match=f"^C3-Score: {next(iter(wrong))} is .*; give a number above 0"):
            ranking(folder, **wrong)


def test_a_record_with_an_impossible_accuracy_is_named(make: Make) -> None:
    with pytest.raises(RecordError, match=r"distreal-s0: C3-Score: the accuracy is 88\.9"):
        ranking(make(facts=facts(88.9)))


def test_no_table_without_its_terms(stored: list[Path]) -> None:
    found = ranking(*stored, temperature=4.0, bytes_max=84.64e9, byte_mode="authors", compute_mode="training")
    for width in (40, 80, 200):
        text = " ".join(shown(found, width).split())
        for term in (
            "T = 4;",
            "bytes_max = 84.64 GB (given)",
            "macs_max = 16.14 TMACs (the most here: random)",
        ):
            assert term in text
        assert "bytes: authors; MACs: training, of all clients" in text
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_width_loses_a_number_or_a_name(make: Make, width: int) -> None:
    names = ("federated-dropout", "adasplit")
    folders = [make(name, s, facts=facts(0.9 + 0.01 * s, 88.8, 26.7)) for name in names for s in range(2)]
    text = shown(ranking(*folders), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for word in (
        "federated",
        "dropout",
        "adasplit",
        "split",
        "90.5±0.7",
        "26.7 T",
        "88.8 GB",
        "0.7048±0.0055",
    ):
        assert word in text
    if width >= 80:
        assert text.count("family") == 1


def test_it_is_said_what_runs_are_worth_to_clients_that_took_no_part(make: Make) -> None:
    runs = [
        make("adasplit", seed, facts={"held_out_accuracy": first, "held_out_accuracy_nearest": 0.5})
        for seed, first in enumerate((0.2, 0.4))
    ]
    (said,) = (n for n in rank(group(read([*runs, make("sl-basic")])))["notes"] if "held out" in n)
    assert said.startswith("adasplit: clients that were held out reach 30.0±14.1 % with the mean")
    assert "50.0±0.0 % with those of the client whose network" in said
