"""One sentence on what the numbers of a comparison show, whatever they are."""

from __future__ import annotations

from typing import Any

from leanfleet.experiment import METHODS
from leanfleet.report.tables import Spread, Tables, percent, seconds


def sentence(tables: Tables) -> str:
    """Compare the first group with each of the others: at the first time that all have reached, and at the last.

    A difference is called one only if it is larger than the deviations over seeds of both together.
    """
    everywhere = range(len(tables["seconds_virtual"]))
    known = [at for at in everywhere if all(_accuracy(row, at) is not None for row in tables["groups"])]
    places = dict.fromkeys([*known[:1], everywhere[-1]])
    return f"After {'; after '.join(_at(tables, place) for place in places)}."


def _at(tables: Tables, place: int) -> str:
    first, *others = [row for row in tables["groups"] if _accuracy(row, place) is not None]
    begin = f"{seconds(tables['seconds_virtual'][place])} of virtual time {first['label']} classifies "
    begin += f"{percent(_accuracy(first, place))} % of the test images correctly"
    last = place == len(tables["seconds_virtual"]) - 1
    return ", ".join([begin, *(_against(first, other, place, last=last) for other in others)])


def _against(first: dict[str, Any], other: dict[str, Any], place: int, *, last: bool) -> str:
    mine, theirs = _accuracy(first, place), _accuracy(other, place)
    assert mine is not None
    assert theirs is not None
    points = 100 * (mine["mean"] - theirs["mean"])
    noise = 100 * ((mine["std"] or 0.0) ** 2 + (theirs["std"] or 0.0) ** 2) ** 0.5
    label = other["label"]
    if last and other["method"] in METHODS and METHODS[other["method"]].resources == "full":
        label += (
            f" (which spends {other['macs_total']['mean'] / first['macs_total']['mean']:.2g} times the MACs)"
        )
    if abs(points) <= noise or abs(points) < 0.05:
        return f"no clear difference to {label}"
    return f"{abs(points):.1f} points {'more' if points > 0 else 'fewer'} than {label}"


def _accuracy(row: dict[str, Any], place: int) -> Spread | None:
    found: Spread | None = row["accuracy_at"][place] if row["accuracy_at"] else None
    return found
