"""Energy: two parts, three constants."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leanfleet.energy import Energy

RESNET_SGP_BYTES = 85.2e9
"""ResNet-20 by SGP on a ring, 78,200 iterations, sent by each node."""


def test_transmission_of_a_dense_run() -> None:
    energy = Energy(joules_per_byte_received=0.0)
    assert energy.joules(bytes_sent=RESNET_SGP_BYTES).total == pytest.approx(6.8e3, rel=0.01)
    assert energy.joules(bytes_sent=RESNET_SGP_BYTES / 466).total == pytest.approx(14.6, rel=0.01)


def test_parts_add_up() -> None:
    joules = Energy(2.0, 3.0, 5.0).joules(macs=10, bytes_sent=100, bytes_received=1000)
    assert (joules.compute, joules.communication, joules.total) == (20, 5300, 5320)


def test_a_sweep_over_the_radio_leaves_the_compute_share() -> None:
    found = [
        replace(Energy(), joules_per_byte_sent=8e-9 * factor).joules(macs=1e9, bytes_sent=1e6)
        for factor in (1, 10, 100)
    ]
    assert len({joules.compute for joules in found}) == 1
    assert found[2].communication == pytest.approx(100 * found[0].communication)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_constants_that_cannot_be_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="joules_per_byte_sent"):
        Energy(joules_per_byte_sent=bad)
