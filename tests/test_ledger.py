from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.ledger import PHI, Budget, Ledger

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
