"""Keys of split methods in a file, and what is left of a file when another family's method takes it over."""

from __future__ import annotations

from typing import Any

import pytest

from leanfleet.errors import ExperimentError
from leanfleet.experiment import FederatedFleet, SplitFleet, SplitTraining, dumps, loads, override
from leanfleet.split import METHODS

ADASPLIT = """
[fleet]
devices = 5
uplink_bytes_per_s = 1e6
[training]
lr = 1e-3
iterations = 7
[method]
name = "adasplit"
cut = "layer2"
values = "int8"
kappa = 0.3
"""


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.kappa=1.1", "[method] kappa = 1.1: should be less than or equal to 1"),
        ("method.kappa=-0.1", "[method] kappa = -0.1: should be greater than or equal to 0"),
        ("method.kappa=nan", "[method] kappa = "),
        ("method.eta=1.5", "[method] eta = 1.5: should be less than or equal to 1"),
        ("method.eta=-1", "[method] eta = -1: should be greater than or equal to 0"),
        ("method.eta=inf", "[method] eta = "),
        ("method.gamma=1.0", "[method] gamma = 1.0: should be less than 1"),
        ("method.temperature=0", "[method] temperature = 0: should be greater than 0"),
        ("method.selection_window=0", "[method] selection_window = 0"),
        ("method.masks=rows", "[method] masks = "),
        ("method.cut=1.5", "[method] cut = 1.5"),
        ("method.cut=true", "[method] cut = true"),
        ("method.values=int3", "[method] values = "),
        ("method.client_nets=shared", "[method] client_nets = "),
        ("method.kapa=0.1", "[method] kapa: unknown key; did you mean 'kappa'?"),
        ("fleet.per_round=3", "[fleet] per_round: unknown key; it belongs in [fleet] of federated methods"),
        ("fleet.iteration_seconds=0", "[fleet] iteration_seconds = 0: should be greater than 0"),
        ("training.iterations=0", "[training] iterations = 0"),
    ],
)
def test_a_wrong_key_is_said_in_one_line(override: str, words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        loads(ADASPLIT, [override])
    text = str(caught.value)
    assert text.startswith(f"--set {override}: {words}")
    assert len(text.splitlines()) == 1


def test_keys_that_do_not_go_together() -> None:
    with pytest.raises(
        ExperimentError, match=r"\[method\] activation_l1: does not go with local_loss = none"
    ):
        loads(ADASPLIT, ["method.activation_l1=1e-3", "method.local_loss=none"])
    with pytest.raises(ExperimentError, match=r"\[method\] local_loss = aux_ce: .* leave head = true"):
        loads(ADASPLIT, ["method.local_loss=aux_ce", "method.head=false"])
    with pytest.raises(ExperimentError, match=r"\[fleet\] held_out = 5: none of the 5 devices would train"):
        loads(ADASPLIT, ["fleet.held_out=5"])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_s_experiment_survives_being_written(name: str) -> None:
    found = loads(ADASPLIT, [f"method.name={name}"])
    assert loads(dumps(found)) == found
    assert isinstance(found.fleet, SplitFleet)
    assert found.training == SplitTraining(lr=1e-3, iterations=7)


def test_where_to_cut_goes_from_one_split_method_to_another() -> None:
    for name in ("sl-basic", "splitfed"):
        found: Any = loads(ADASPLIT, [f"method.name={name}"]).options
        assert (found.cut, found.values) == ("layer2", "int8")
    again: Any = override(loads(ADASPLIT), ["method.name=sl-basic", "method.cut=3"]).options
    assert (again.cut, again.values) == (3, "int8")
    back: Any = override(
        override(loads(ADASPLIT), ["method.name=sl-basic"]), ["method.name=adasplit"]
    ).options
    assert (back.cut, back.kappa) == ("layer2", 0.6)


def test_a_federated_method_takes_over_what_it_knows() -> None:
    for before in (loads(ADASPLIT), None):
        sets = ["method.name=fedavg"]
        found = override(before, sets) if before else loads(ADASPLIT, sets)
        assert isinstance(found.fleet, FederatedFleet)
        assert (found.fleet.devices, found.fleet.per_round) == (5, 5)
        assert found.training.lr == 0.1
    large = loads(ADASPLIT, ["method.name=fedavg", "fleet.devices=50"])
    assert isinstance(large.fleet, FederatedFleet)
    assert large.fleet.per_round in (5, 10)
    asked = loads(ADASPLIT, ["method.name=fedavg", "fleet.per_round=3"])
    assert isinstance(asked.fleet, FederatedFleet)
    assert asked.fleet.per_round == 3


def test_a_split_method_takes_over_a_federated_file() -> None:
    text = "[fleet]\ndevices = 8\nper_round = 2\nratio = 3.0\n[training]\nmomentum = 0.9\n"
    found = loads(text, ["method.name=adasplit"])
    assert isinstance(found.fleet, SplitFleet)
    assert (found.fleet.devices, found.fleet.ratio) == (8, 3.0)
    assert found.training == SplitTraining()
