"""The tables that come with the package: a change of networks or fingerprints must not leave them behind unnoticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import leanfleet.subnet
from leanfleet.nets import NETWORKS, build
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.lut import Lut

SHIPPED = sorted((Path(leanfleet.subnet.__file__).parent / "luts").glob("*.lut"))
every_table = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.stem.rpartition("-")[0]


def plan_of(name: str, classes: int) -> SubnetPlan:
    reference = NETWORKS[name]
    net = build(name, classes=classes)
    return SubnetPlan.trace(net, torch.zeros(2, *reference.shape), reference.keep)


def test_there_is_one_of_every_network_that_the_docs_name():
    named = re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)
    assert sorted(named) == sorted(name_of(path) for path in SHIPPED)
    assert {"digits-cnn", "femnist-cnn", "densenet-bc-19", "densenet-bc-40", "resnet-20"} <= set(named)


@every_table
def test_it_is_found_for_its_network_with_any_number_of_classes(path):
    for classes in (10, 37):
        plan = plan_of(name_of(path), classes)
        found = Lut.shipped(plan.fingerprint)
        assert found == Lut.load(path)
        found.check(plan)
        assert found.about["network"] == name_of(path)


@every_table
def test_its_macs_are_those_of_the_network_it_was_searched_on(path):
    plan = plan_of(name_of(path), 10)
    for row in Lut.load(path).rows:
        assert row.macs == pytest.approx(plan.macs(row.rates), rel=1e-6)


@every_table
def test_it_is_measured_and_better_than_one_rate_for_all_layers(path):
    lut = Lut.load(path)
    unknown = [place for place, row in enumerate(lut.rows) if row.f2 is None]
    assert set(unknown) <= set(lut.about["interpolated"])
    assert len(lut.rows) - len(unknown) >= 50
    for measure, volume in lut.about["hypervolume"].items():
        assert volume > lut.about["hypervolume_uniform"][measure]


@every_table
def test_the_docs_say_what_its_header_says(path):
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name_of(path)}` |"))
    about = Lut.load(path).about
    for measure in ("loss", "accuracy"):
        found, uniform = about["hypervolume"][measure], about["hypervolume_uniform"][measure]
        assert f"{found:.3f}, {uniform:.3f}" in line
