"""Clock, availability and pacer together reproduce an independent simulation of late and useful shares."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "simulator_table.py"
spec = importlib.util.spec_from_file_location("simulator_table", FILE)
assert spec is not None
assert spec.loader is not None
table = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)


@pytest.mark.parametrize("column", table.COLUMNS)
@pytest.mark.parametrize("changes", table.EXPECTED)
def test_cell(changes: float, column: str) -> None:
    found = table.simulate(table.COLUMNS[column], changes, rounds=4_000, seed=0)
    assert found.minus(table.EXPECTED[changes][column]).largest() <= table.TOLERANCE
