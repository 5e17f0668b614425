"""One sentence on what the numbers of a comparison show, whatever they are."""

from __future__ import annotations

from typing import Any

from leanfleet.federated import METHODS
from leanfleet.report.tables import Spread, Tables, percent, seconds


def sentence(tables: Tables) -> str:
    """Compare the first group with each of the others, at the last virtual time that all runs reached.

    A difference is called one only if it is larger than the deviations over seeds of both together.
    """
    first, *others = [row for row in tables["groups"] if _accuracy(row) is not None]
    begin = f"After {seconds(tables['seconds_virtual'][-1])} of virtual time {first['label']} classifies "
    begin += f"{percent(_accuracy(first))} % of the test images correctly"
    parts = [_against(first, other) for other in others]
    return f"{begin}: {', '.join(parts)}." if parts else f"{begin}."


def _against(first: dict[str, Any], other: dict[str, Any]) -> str:
    mine, theirs = _accuracy(first), _accuracy(other)
    assert mine is not None
    assert theirs is not None
    points = 100 * (mine["mean"] - theirs["mean"])
    noise = 100 * ((mine["std"] or 0.0) ** 2 + (theirs["std"] or 0.0) ** 2) ** 0.5
    label = other["label"]
    if other["method"] in METHODS and METHODS[other["method"]].resources == "full":
        label += (
            f" (which spends {other['macs_total']['mean'] / first['macs_total']['mean']:.2g} times the MACs)"
        )
    if abs(points) <= noise or abs(points) < 0.05:
        return f"no clear difference to {label}"
    return f"{abs(points):.1f} points {'more' if points > 0 else 'fewer'} than {label}"


def _accuracy(row: dict[str, Any]) -> Spread | None:
    found: Spread | None = row["accuracy_at"][-1] if row["accuracy_at"] else None
    return found
