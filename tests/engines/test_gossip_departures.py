"""Nodes that are away, leave for good, or crash."""

from __future__ import annotations

import pytest
from small_gossip import (
    assert_same,
    experiment,
    job_of,
    restored,
    states,
    weight_with_outstanding,
)

from leanfleet.engines import resume, run


class InterruptedByTestError(Exception):
    pass


@pytest.mark.parametrize(
    "overrides",
    [
        ("fleet.absences=[[2, 0, 2]]",),
        ("fleet.absences=[[2, 0, -1]]", "method.name=sgp"),
        ("fleet.absences=[[2, 0, -1]]", "method.name=sgp", "fleet.farewell=crash", "method.lease=2"),
    ],
    ids=["away", "gone", "crashed"],
)
def test_who_is_away_from_the_start_stops_nobody(tmp_path, overrides):
    """It has no loss yet that its state could hold."""
    record = run(experiment(*overrides, "experiment.rounds=2"), root=tmp_path, workers=1)
    assert_same(resume(record.folder), record)
    assert record.summary()["weights"][0] > 0


def test_an_outage_does_not_end_a_run(tmp_path):
    """Node 1 of a one-way ring hears nothing for 43 exchanges."""
    sent = "method.name=sgp", "fleet.graph=ring", "experiment.rounds=20", "experiment.eval_every=20"
    record = run(experiment(*sent, "fleet.cuts=[[0, 1, 3, 45]]"), root=tmp_path, workers=1)
    assert record.summary()["disagreement"] < 0.1


GOES = "fleet.absences=[[1, 4, -1]]", "fleet.loss_rate=0.2", "method.name=sgp"


@pytest.mark.parametrize("how", ["handover", "withdraw", "crash"])
def test_the_others_go_on_when_a_node_has_left(tmp_path, how):
    lease = ("method.lease=2",) if how == "crash" else ()
    overrides = *GOES, f"fleet.farewell={how}", *lease
    record = run(experiment(*overrides), root=tmp_path, workers=1)
    summary, events = record.summary(), record.events()
    assert sorted(states(record)) == [0, 2, 3]
    assert summary["nodes"] == len(summary["accuracies"]) == 3
    assert events[0]["nodes"] == 4
    nodes = restored(record, job_of(*overrides))
    total = weight_with_outstanding(nodes)
    assert events[0]["mass"] == 4
    assert summary["mass"] == pytest.approx(4 if how == "handover" else 3, abs=0.9)
    # Of a crashed node, with what it had absorbed and could not say any more: that was taken back.
    assert total == pytest.approx(summary["mass"], abs=1e-9)
    if how == "handover":
        assert total == pytest.approx(4, abs=1e-9)
    assert min(node.weight for node in nodes.values()) > 0.1
    for node in nodes.values():
        assert 1 not in node.sums.out or node.sums.expired(1)


def test_a_run_whose_node_has_left_resumes(tmp_path):
    def stop(progress):
        if progress.round == 2 and progress.share > 0.4:
            raise InterruptedByTestError

    whole = run(experiment(*GOES), root=tmp_path / "whole", workers=1)
    with pytest.raises(InterruptedByTestError):
        run(experiment(*GOES), root=tmp_path, workers=1, watch=stop)
    assert_same(resume(tmp_path / "small"), whole)


def test_a_handover_is_paid_for(tmp_path):
    stays, goes = (
        run(experiment("method.name=sgp", *more), root=tmp_path, workers=1).summary()
        for more in ((), ("fleet.absences=[[1, 8, -1]]",))
    )
    # In the last of 9 exchanges 3 nodes have 4 links instead of 8, and one model was handed over.
    dense = stays["bytes_up"] / 72
    assert goes["bytes_up"] == pytest.approx(stays["bytes_up"] - 4 * dense + dense, rel=1e-3)


def test_who_has_no_heir_takes_its_mass_along(tmp_path):
    overrides = "method.name=sgp", "fleet.devices=6", "experiment.rounds=1"
    left = run(
        experiment(*overrides, "fleet.absences=[[0, 1, -1], [2, 1, -1], [1, 1, -1]]"),
        root=tmp_path,
        workers=1,
    )
    assert sorted(states(left)) == [3, 4, 5]
    assert left.summary()["mass"] == pytest.approx(5, abs=0.9)
    nodes = restored(left, job_of(*overrides))
    assert weight_with_outstanding(nodes) == pytest.approx(left.summary()["mass"], abs=1e-9)


def test_letters_of_a_crashed_node_do_not_arrive(tmp_path):
    overrides = (
        "method.name=sgp", "fleet.late_rate=0.5",
        "fleet.absences=[[1, 4, -1]]", "fleet.farewell=crash", "method.lease=3",
    )  # fmt: skip
    record = run(experiment(*overrides), root=tmp_path, workers=1)
    nodes = restored(record, job_of(*overrides))
    assert weight_with_outstanding(nodes) == pytest.approx(record.summary()["mass"], abs=1e-9)
