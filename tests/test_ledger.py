from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.errors import UserError
from leanfleet.ledger import C3, PHI, Budget, Ledger, c3_score

DEVICES = 5
rounds = st.lists(
    st.fixed_dictionaries(
        {
            "device": st.integers(0, DEVICES - 1),
            "macs": st.integers(0, 10**12),
            "bytes_up": st.integers(0, 10**9),
            "bytes_down": st.integers(0, 10**9),
            "late": st.booleans(),
        }
    ),
    max_size=20,
)


def test_phi() -> None:
    assert PHI == 3


@given(rounds)
def test_totals_are_the_sums_of_what_was_recorded(entries: list[dict[str, int]]) -> None:
    ledger = Ledger.empty(DEVICES)
    for entry in entries:
        ledger.record(**entry)  # type: ignore[arg-type]
    total = sum(entry["macs"] for entry in entries)
    late = sum(entry["late"] for entry in entries)
    assert ledger.totals() == {
        "macs_total": total,
        "server_macs": 0,
        "macs_per_device_mean": total / DEVICES,
        "bytes_up": sum(entry["bytes_up"] for entry in entries),
        "bytes_down": sum(entry["bytes_down"] for entry in entries),
        "seconds_virtual": 0,
        "seconds_wall": 0,
        "stragglers": late,
        "late_share": late / len(entries) if entries else 0.0,
        "energy_joules": None,
    }
    assert ledger.late_share == (late / len(entries) if entries else 0)
    for device in range(DEVICES):
        assert ledger.macs[device] == sum(e["macs"] for e in entries if e["device"] == device)


@given(rounds, st.floats(0, 1e9))
def test_state_survives_json(entries: list[dict[str, int]], seconds: float) -> None:
    ledger = Ledger.empty(DEVICES)
    for entry in entries:
        ledger.record(**entry)  # type: ignore[arg-type]
    ledger.seconds_virtual = ledger.seconds_wall = seconds
    ledger.server_macs = 7.5
    again = Ledger.from_state(json.loads(json.dumps(ledger.state())), ledger.tensors())
    assert torch.equal(again.macs, ledger.macs)
    assert again.macs.dtype == torch.float64
    assert again.totals() == ledger.totals()
    assert again.participations == ledger.participations


def test_state_names_every_count() -> None:
    ledger = Ledger.empty(1)
    assert {*ledger.state(), *ledger.tensors()} == {field.name for field in dataclasses.fields(Ledger)}


def test_a_restored_ledger_does_not_change_its_source() -> None:
    ledger = Ledger.empty(1)
    again = Ledger.from_state(ledger.state(), ledger.tensors())
    again.record(0, macs=1, bytes_up=0, bytes_down=0, late=False)
    assert ledger.macs_total == 0


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        (Budget(), None),
        (Budget(macs=101, bytes=31, seconds=5.5), None),
        (Budget(macs=100), "macs"),
        (Budget(bytes=30), "bytes"),
        (Budget(bytes=20, seconds=1), "bytes"),
        (Budget(seconds=5), "seconds"),
        (Budget(macs=0), "macs"),
    ],
)
def test_budget(budget: Budget, spent: str | None) -> None:
    ledger = Ledger.empty(2)
    ledger.record(1, macs=100, bytes_up=10, bytes_down=20, late=False)
    ledger.seconds_virtual, ledger.server_macs = 5.0, 1e9
    assert budget.used_up(ledger) == spent


def c3(accuracy: float, bytes: float, macs: float, temperature: float = 8.0) -> C3:
    return c3_score(accuracy, bytes, macs, bytes_max=1.0, macs_max=1.0, temperature=temperature)


@pytest.mark.parametrize(
    ("spent", "temperature", "score", "over"),
    [
        ((1.0, 0.0, 0.0), 8.0, 1.0, False),
        ((0.9, 0.5, 0.25), 8.0, 0.8194593252, False),
        ((0.9, 1.0, 1.0), 8.0, 0.7009207048, False),
        ((0.9, 2.0, 0.5), 8.0, 0.6584540661, True),
        ((0.9, 0.5, 0.25), 1.0, 0.4251298975, False),
    ],
)
def test_c3_known_values(
    spent: tuple[float, float, float], temperature: float, score: float, over: bool
) -> None:
    found = c3(*spent, temperature=temperature)
    assert found.score == pytest.approx(score, abs=1e-10)
    assert found.over_budget == over


# Accuracy in per cent, GB and client TF of five runs, by the largest consumption among those compared.
MIXED_NON_IID = {
    "SL-basic": (84.65, 84.64, 3.76, 0.7340, 0.6845),
    "SplitFed": (84.64, 84.54, 3.76, 0.7340, 0.6846),
    "masks only": (89.38, 43.81, 3.76, 0.8232, 0.7677),
    "random": (88.74, 9.91, 5.38, 0.8527, 0.7717),
    "UCB": (88.88, 9.71, 5.38, 0.8543, 0.7732),
    "UCB with hand-overs": (88.88, 9.71 + 3.814, 5.38, 0.8495, None),
}
MIXED_CIFAR = {
    "SL-basic": (70.93, 25.98, 1.66, 0.6243),
    "SplitFed": (65.76, 29.51, 1.66, 0.5702),
    "masks only": (93.02, 17.04, 1.66, 0.8503),
    "AdaSplit": (91.63, 3.63, 2.38, 0.8798),
    "no head": (87.44, 3.94, 1.66, 0.8449),
}


@pytest.mark.parametrize("name", MIXED_NON_IID)
def test_c3_on_mixed_non_iid(name: str) -> None:
    accuracy, gb, tf, with_fl, split_only = MIXED_NON_IID[name]
    for macs_max, expected in ((26.68, with_fl), (5.38, split_only)):
        if expected is not None:
            found = c3_score(accuracy / 100, gb, tf, bytes_max=84.64, macs_max=macs_max)
            assert found.score == pytest.approx(expected, abs=6e-5)
            assert (found.bytes_max, found.macs_max, found.temperature) == (84.64, macs_max, 8.0)


@pytest.mark.parametrize("name", MIXED_CIFAR)
def test_c3_on_mixed_cifar(name: str) -> None:
    accuracy, gb, tf, expected = MIXED_CIFAR[name]
    found = c3_score(accuracy / 100, gb, tf, bytes_max=29.51, macs_max=11.79)
    assert found.score == pytest.approx(expected, abs=6e-5)


shares = st.floats(0, 1)


@given(shares, shares, shares, st.floats(0.1, 100))
def test_c3_lies_between_nothing_and_the_accuracy(
    accuracy: float, bytes: float, macs: float, temperature: float
) -> None:
    found = c3(accuracy, bytes, macs, temperature)
    assert accuracy * math.exp(-2 / temperature) * (1 - 1e-9) <= found.score <= accuracy
    assert not found.over_budget
    assert c3(accuracy, bytes + 1, macs, temperature).score <= found.score


@given(shares, shares, shares, st.floats(1e-3, 1e12))
def test_c3_does_not_hang_on_units(accuracy: float, bytes: float, macs: float, unit: float) -> None:
    found = c3_score(accuracy, bytes * unit, macs / unit, bytes_max=unit, macs_max=1 / unit)
    assert found.score == pytest.approx(c3(accuracy, bytes, macs).score)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"accuracy": 88.9}, "the accuracy is 88.9; give a fraction"),
        ({"accuracy": -0.1}, "the accuracy is -0.1"),
        ({"accuracy": math.nan}, "the accuracy is nan"),
        ({"bytes": -1.0}, "bytes is -1"),
        ({"macs": math.inf}, "macs is inf"),
        ({"bytes_max": 0.0}, "bytes_max is 0; give a number above 0"),
        ({"macs_max": -5.0}, "macs_max is -5"),
        ({"macs_max": math.nan}, "macs_max is nan"),
        ({"temperature": 0.0}, "temperature is 0"),
    ],
)
def test_c3_refuses_what_has_no_score(wrong: dict[str, float], text: str) -> None:
    right = {"accuracy": 0.9, "bytes": 0.5, "macs": 0.5, "bytes_max": 1.0, "macs_max": 1.0}
    with pytest.raises(UserError, match=f"^C3-Score: {text}"):
        c3_score(**right | wrong)
