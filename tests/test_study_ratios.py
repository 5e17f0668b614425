"""The table that a study has of gossip."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from leanfleet.report import Group
from leanfleet.report.records import Record

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "studies"))

from ratios import ratios


def group(label: str, method: str, density: float, **totals: Any) -> Group:
    config: dict[str, dict[str, Any]] = {"method": {"name": method, "density": density}}
    told = {"family": "gossip", "values_per_message": 100, "bytes_per_message": 500.0, **totals}
    return Group(label, method, (Record(Path(label), config, (), told, True),))


def accuracies(before: float, after: float, ratio: float, with_final: float) -> dict[str, float]:
    return {
        "accuracy_before_final": before,
        "accuracy": after,
        "ratio": ratio,
        "ratio_with_final": with_final,
        "final_rounds": 88,
    }


SGP = group("sgp", "sgp", 1, **accuracies(0.7, 0.7, 1, 1))


def test_the_largest_ratio_at_one_percent_is_named() -> None:
    close = group("close", "scsp", 0.1, **accuracies(0.5, 0.695, 9, 6.5))
    far = group("far", "scsp", 0.01, **accuracies(0.4, 0.5, 80, 11))
    *table, claim = ratios([SGP, close, far])
    assert "ratio is **6.5**: `close`, final rounds included, density 0.1, 40 bits a value, R = 88" in claim
    assert sum(line.startswith("| far | 0.01 ") for line in table) == 1
    better = group("close", "scsp", 0.1, **accuracies(0.692, 0.695, 9, 6.5))
    assert "**9.0**: `close`, without final rounds" in list(ratios([SGP, better, far]))[-1]


def test_where_nothing_is_good_enough_it_says_so() -> None:
    far = group("far", "scsp", 0.01, **accuracies(0.4, 0.5, 80, 11))
    assert list(ratios([SGP, far]))[-1] == "At most 1 % below `sgp`: none.\n"
    assert "At most" not in "".join(ratios([far]))


def test_without_gossip_there_is_no_table() -> None:
    record = Record(Path("a"), {"method": {"name": "fedavg"}}, (), {"family": "federated"}, True)
    assert list(ratios([Group("fedavg", "fedavg", (record,))])) == []
