"""The end of a search: which vectors are measured anew, and the table that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from leanfleet.search.objectives import REFERENCE, equidistant
from leanfleet.search.strategies import HIGHEST, Space
from leanfleet.search.trials import Values
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.lut import Row

MEASURES: Final = ("accuracy", "loss")

LINE: Final = 7
"""Vectors of one rate for all layers that are measured beside the front."""
FEWEST_SEEDS: Final = 3
"""New seeds that a row should have at least; where there is no time for them there are fewer rows."""

_FEWEST = 2 + LINE + 4
# Nearer than this to an extreme, in the first objective, a vector is taken for it.
_NEAR = 1e-3
_BISECTIONS = 40


@dataclass(frozen=True)
class Candidates:
    """Vectors to measure anew: both extremes, one rate for all layers, then a front and what lies between its points.

    Attributes:
        rates: [n, groups].
        line: How many of one rate for all there are, after the two extremes.
        mixed: How many at the end were not chosen by a strategy: they lie between two that were.
    """

    rates: Values
    line: int
    mixed: int

    @property
    def is_mixed(self) -> npt.NDArray[np.bool_]:
        """Which vectors, [n]."""
        return np.arange(len(self.rates)) >= len(self.rates) - self.mixed


def candidates(
    plan: SubnetPlan, space: Space, front: Values, population: int, affordable: float
) -> Candidates:
    """Return what to measure anew; what would fill a table where there is no time to measure anything.

    Args:
        plan: The network.
        space: What was searched.
        front: [m, groups] the strategy's best vectors.
        population: Rows of the table at most.
        affordable: Short trainings that there is time for.
    """
    # Where time is short, fewer rows rather than rows that nobody can believe.
    seeds = next((n for n in (FEWEST_SEEDS, 2) if affordable >= n * _FEWEST), 1)
    room = int(min(population + LINE, affordable / seeds))
    line = min(LINE, max(0, room - 2))
    rows = (room if room >= 2 else population) - 2 - line
    front = np.unique(front.astype(np.float32), axis=0).astype(np.float64)
    f1 = space.f1(front)
    front = front[(f1 > _NEAR) & (f1 < 1 - _NEAR)]
    inner = front[equidistant(space.f1(front), rows)]
    between = mixes(space, np.concatenate([space.extremes, inner]), rows - len(inner))
    rates = np.concatenate([space.extremes, uniform_line(plan, line), inner, between])
    return Candidates(rates, line, len(between))


def uniform_line(plan: SubnetPlan, points: int) -> Values:
    """Return vectors [points, groups] of one rate for all layers, spread evenly in MACs between the extremes."""
    low, high = (plan.macs(plan.uniform(rate)) for rate in (HIGHEST, 0.0))
    rates = [plan.uniform_rate(float(macs), HIGHEST) for macs in np.linspace(low, high, points + 2)[1:-1]]
    return np.array([plan.uniform(rate) for rate in rates]).reshape(points, len(plan.groups))


def mixes(space: Space, rates: Values, count: int) -> Values:
    """Return vectors between neighbours of a front, where it has the largest gaps in cost (our decision).

    Each is a mix of its two neighbours' rates, at a cost between theirs. Where dropping more harms ever more, as it
    does, it loses less than a straight line between them.

    Args:
        space: What was searched.
        rates: [n, groups] the front, n >= 2, in any order.
        count: How many to return, [count, groups].
    """
    count = max(0, count)
    f1 = space.f1(rates)
    order = np.argsort(f1, kind="stable")
    rates, f1 = rates[order], f1[order]
    gaps, each = np.diff(f1), np.zeros(len(rates) - 1, dtype=np.int64)
    for _ in range(count):
        each[np.argmax(gaps / (each + 1))] += 1
    at = np.repeat(np.arange(len(gaps)), each)
    part = np.array([k / (n + 1) for n in each.tolist() for k in range(1, n + 1)])
    goal = f1[at] + part * gaps[at]
    low, high = np.zeros((count, 1)), np.ones((count, 1))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        cheap = (space.f1(rates[at] + middle * (rates[at + 1] - rates[at])) < goal)[:, None] if count else low
        low, high = np.where(cheap, middle, low), np.where(cheap, high, middle)
    found: Values = rates[at] + high * (rates[at + 1] - rates[at])
    return found


def table(
    plan: SubnetPlan,
    space: Space,
    given: Candidates,
    gains: Values,
    measure: int,
    population: int,
    timed: bool,
) -> tuple[list[Row], dict[str, Any]]:
    """Return a table's rows and what is to be known about them.

    Only the fresh gains are believed. A row is left out if a cheaper one loses less by more than two standard errors
    of their difference over the same seeds; one that may be as good is kept: a gap in the table costs more. Where time
    was short, mixes that nobody has measured fill the gaps.

    Args:
        plan: The network.
        space: What was searched.
        given: What was measured.
        gains: [vectors, seeds, 2], of both measures.
        measure: The one that decides.
        population: Rows at most.
        timed: Whether costs are seconds.
    """
    f1, lost = space.f1(given.rates), _lost(gains[:, :, measure])
    unknown = np.full(len(f1), np.nan)
    mean, error = (unknown, unknown) if lost is None else (lost.mean(axis=1), _error(lost))
    kept = _kept(f1, lost, population)
    more = mixes(space, given.rates[kept], population - max(len(kept), len(f1) - given.line))
    known = {
        "rates": np.concatenate([given.rates[kept], more]).astype(np.float32).astype(np.float64),
        "f2": np.append(mean[kept], np.full(len(more), np.nan)),
        "stderr": np.append(error[kept], np.full(len(more), np.nan)),
        "mixed": np.append(given.is_mixed[kept], np.ones(len(more), dtype=bool)),
    }
    order = np.argsort([plan.macs(vector) for vector in known["rates"].tolist()], kind="stable")
    seconds = space.cost(known["rates"]) if timed else np.full(len(order), np.nan)
    rows = [
        Row(
            tuple(known["rates"][i].tolist()), plan.macs(known["rates"][i].tolist()), _none(known["f2"][i]),
            _none(known["stderr"][i]), _none(seconds[i]),
        )
        for i in order
    ]  # fmt: skip
    line = np.array([1, *range(2, 2 + given.line), 0])
    at = f1[line]
    about = {
        "hypervolume": _volumes(f1, gains, measure, at, lambda lost: _kept(f1, lost, population)),
        "hypervolume_uniform": _volumes(f1, gains, measure, at, lambda lost: line),
        "uniform": _points(f1, mean, error, line),
        "front": _points(f1, mean, error, kept),
        "fresh_seeds": gains.shape[1],
        # Half of everything dropped then learned as much as nothing dropped: chance, or there is nothing to find.
        "judged": lost is not None,
        "interpolated": [place for place, i in enumerate(order.tolist()) if known["mixed"][i]],
    }
    return rows, about


def _lost(gain: Values) -> Values | None:
    """Return the second objective [n, seeds]; None where both extremes gain alike, or nothing was measured."""
    full, half = 0, 1
    if gain.shape[1] == 0 or not gain[full].mean() > gain[half].mean():
        return None
    lost: Values = (gain[full] - gain) / (gain[full].mean() - gain[half].mean())
    return lost


def _error(each: Values) -> Values:
    """Return the standard error of means over the last axis, NaN of a single one."""
    count = each.shape[-1]
    if count < 2:
        return np.full(each.shape[:-1], np.nan)
    found: Values = each.std(axis=-1, ddof=1) / np.sqrt(count)
    return found


def _kept(f1: Values, lost: Values | None, population: int) -> npt.NDArray[np.int64]:
    """Return the rows of a table, at most `population`; without measurements all of them."""
    keep = np.ones(len(f1), dtype=bool)
    if lost is not None:
        more = lost[:, None] - lost[None, :]
        worse, doubt = more.mean(axis=2), 2 * np.nan_to_num(_error(more))
        dearer = f1[:, None] - f1[None, :]
        keep = ~((dearer >= 0) & (worse >= doubt) & ((dearer > 0) | (worse > 0))).any(axis=1)
    keep[:2] = True
    found = np.flatnonzero(keep)
    return found[equidistant(f1[found], population)]


def _volumes(
    f1: Values, gains: Values, measure: int, at: Values, choose: Callable[[Values], npt.NDArray[np.int64]]
) -> dict[str, float | None]:
    """Return the hypervolume of a table, by measure: of the straight lines between its rows, up and down.

    A device takes the dearest row that fits, whether a cheaper one was measured better or not. Rows are chosen by one
    half of the seeds and judged by the other, and the other way round: chosen and judged by the same ones, luck alone
    makes a front that looks better than any line. All tables are read at the same costs `at`, ascending from 0 to 1:
    losses are convex, so of two tables that are as good the one with more rows would have the larger area.
    """
    halves = [slice(0, None, 2), slice(1, None, 2)]
    found = dict[str, float | None]()
    for number, name in enumerate(MEASURES):
        areas = []
        for one, other in (halves, halves[::-1]):
            chosen, judged = _lost(gains[:, one, measure]), _lost(gains[:, other, number])
            if chosen is not None and judged is not None:
                areas.append(_area(f1, judged.mean(axis=1), choose(chosen), at))
        found[name] = float(np.mean(areas)) if len(areas) == len(halves) else None
    return found


def _area(f1: Values, lost: Values, rows: npt.NDArray[np.int64], at: Values) -> float:
    """Return the area between a curve and the reference point; it goes through rows, and is read at some costs."""
    rows = rows[np.argsort(f1[rows], kind="stable")]
    under = np.maximum(REFERENCE[1] - np.interp(at, f1[rows], lost[rows]), 0.0)
    return float(np.trapezoid(under, at) + (REFERENCE[0] - 1) * under[-1])


def _points(f1: Values, mean: Values, error: Values, rows: npt.NDArray[np.int64]) -> list[list[float | None]]:
    if np.isnan(mean).any():
        return []
    return [[float(f1[i]), float(mean[i]), _none(error[i])] for i in rows]


def _none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
