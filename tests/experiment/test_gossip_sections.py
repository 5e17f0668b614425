"""What an experiment file can say of a gossip fleet and of energy."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanfleet.energy import Energy
from leanfleet.errors import ExperimentError
from leanfleet.experiment import Experiment, GossipFleet, GossipTraining, dumps, load, loads, override

GOSSIP = '[method]\nname = "scsp"\n'


def fleet(*overrides: str) -> GossipFleet:
    found = loads(GOSSIP, overrides).fleet
    assert isinstance(found, GossipFleet)
    return found


def test_defaults_are_those_of_the_author() -> None:
    found = loads(GOSSIP)
    assert (found.fleet.devices, fleet().graph) == (8, "ring")
    training = found.training
    assert isinstance(training, GossipTraining)
    assert (training.lr, training.momentum, training.nesterov, training.weight_decay) == (
        0.1,
        0.9,
        True,
        1e-4,
    )
    assert (
        found.options.model_dump().items() >= {"density": 0.01, "eta": None, "final_rounds": "auto"}.items()
    )


def test_a_file_comes_back_as_it_was_written() -> None:
    more = (
        "fleet.absences=[[1, 2, 3], [4, 5, -1]]",
        "fleet.cuts=[[0, 1, 2, 3]]",
        "energy.joules_per_mac=1e-12",
    )
    found = loads(GOSSIP, more)
    assert loads(dumps(found)) == found
    assert fleet(*more[:2]).departures == {4: 5}


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("fleet.graph=rung", "graph 'rung' is unknown; did you mean 'ring'"),
        ("fleet.absences=[[8, 0, 1]]", "no node 8; nodes are 0 to 7"),
        ("fleet.cuts=[[0, 9, 0, 1]]", "no node 9; nodes are 0 to 7"),
        ("fleet.cuts=[[0, 1, 5, 4]]", "ends before it begins"),
        ("fleet.absences=[[0, 5, 4]]", "ends before it begins; -1 is for good"),
        ("fleet.absences=[[0, 5, -2]]", "ends before it begins; -1 is for good"),
        ("fleet.absences=[[0, 5, -1], [0, 7, -1]]", "leaves for good only once"),
        ("fleet.loss_rate=1", "less than 1"),
        ("fleet.farewell=ghost", "handover"),
        ("method.eta=0.5", "50 times the density of 0.01 diverges"),
        ("training.milestones=[0.5, 0.2]", "should increase"),
        ("budget.joules=3", r"\[budget\] joules: needs a section \[energy\]"),
        ("energy.joules_per_mac=-1", "greater than or equal to 0"),
        ("energy.watts=1", r"\[energy\] watts: unknown key"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_key(setting: str, error: str) -> None:
    with pytest.raises(ExperimentError, match=error) as caught:
        loads(GOSSIP, [setting])
    assert "\n" not in str(caught.value)
    assert setting.partition(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "loses"),
    [
        ((), False),
        (("fleet.loss_rate=0.1",), True),
        (("fleet.absences=[[0, 1, 2]]",), True),
        (("fleet.absences=[[0, 1, -1]]",), False),
        (("fleet.absences=[[0, 1, -1]]", "fleet.farewell=crash"), True),
    ],
)
def test_who_leaves_in_order_loses_nothing(overrides: tuple[str, ...], loses: bool) -> None:
    assert fleet(*overrides).loses == loses


@pytest.mark.parametrize("spec", ["file:links.csv", "file(20):links.csv"])
def test_a_file_of_links_lies_beside_the_experiment(tmp_path: Path, spec: str) -> None:
    (tmp_path / "x.toml").write_text(f'{GOSSIP}[fleet]\ngraph = "{spec}"\n')
    found = load(tmp_path / "x.toml")
    assert isinstance(found.fleet, GossipFleet)
    assert found.fleet.graph_file == tmp_path / "links.csv"
    assert found.fleet.graph == spec.replace("links", f"{tmp_path}/links")
    assert loads(dumps(found)) == found


def test_energy_is_off_unless_asked_for() -> None:
    assert Experiment().energy is None
    assert loads("[energy]").energy == Energy()
    assert override(Experiment(), ["energy.joules_per_mac=0"]).energy == Energy(joules_per_mac=0)
