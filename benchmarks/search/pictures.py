"""Pictures of a study: hypervolume against training samples, and the fronts."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numbers_of import Found
from variants import UNIFORM

from leanfleet.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008), then of Paul Tol's muted colours.
_COLOURS = {"paper": "#0072B2", "fast": "#D55E00", "random": "#7F7F7F", UNIFORM: "#000000"}
_MORE = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933", "#332288", "#CC6677")
_MARKERS = "os^Dv<>PX*hp"


def draw(searches: dict[str, list[Found]], title: str, folder: Path) -> list[str]:
    """Draw both pictures; return their names."""
    from matplotlib.figure import Figure

    seeds = max(len(found) for found in searches.values())
    title = f"{title}, mean and range of {seeds} seeds" if seeds > 1 else title
    names = []
    for name, paint in (("hypervolume.png", _hypervolumes), ("fronts.png", _fronts)):
        figure = Figure(figsize=(8.6, 4.6), dpi=150, layout="constrained")
        paint(figure, searches)
        axes = figure.axes[0]
        axes.set_title(title, loc="left", fontsize="medium")
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_bytes(folder / name, buffer.getvalue())
        names.append(name)
    return names


def _style(searches: dict[str, list[Found]], strategy: str) -> tuple[str, str]:
    others = [name for name in searches if name not in _COLOURS]
    number = others.index(strategy) if strategy in others else 0
    colour = _COLOURS.get(strategy, _MORE[number % len(_MORE)])
    return colour, _MARKERS[list(searches).index(strategy) % len(_MARKERS)]


def _hypervolumes(figure: Figure, searches: dict[str, list[Found]]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes = figure.subplots()
    for strategy, found in searches.items():
        colour, marker = _style(searches, strategy)
        volumes = np.array([[front.hypervolume for front in one.fronts] for one in found])
        low, mean, high = volumes.min(axis=0), volumes.mean(axis=0), volumes.max(axis=0)
        if strategy == UNIFORM:
            axes.axhline(mean[0], color=colour, linestyle="--", label="one rate for all\nlayers, no search")
            axes.axhspan(low[0], high[0], color=colour, alpha=0.08, linewidth=0)
            continue
        main = strategy in _COLOURS
        axes.plot(found[0].samples, mean, color=colour, marker=marker, markersize=4, label=strategy,
                  linewidth=2.0 if main else 0.0)  # fmt: skip
        axes.fill_between(
            found[0].samples, low, high, color=colour, alpha=0.15 if main else 0.06, linewidth=0
        )
    if "paper" in searches:
        goal = 0.99 * statistics.fmean([one.fronts[-1].hypervolume for one in searches["paper"]])
        axes.axhline(
            goal, color=_COLOURS["paper"], linestyle=":", linewidth=1.2, label="99 % of paper's last"
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training samples of the search")
    axes.set_ylabel("hypervolume of the front, judged with fresh seeds")


def _fronts(figure: Figure, searches: dict[str, list[Found]]) -> None:
    axes = figure.subplots()
    shown = [strategy for strategy in searches if strategy in _COLOURS]
    for number, strategy in enumerate(shown):
        colour, marker = _style(searches, strategy)
        fronts = [one.fronts[-1] for one in searches[strategy]]
        for front in fronts:
            axes.plot(100 * front.macs, front.f2, marker, color=colour, markersize=4, alpha=0.35, linewidth=0)
        grid = fronts[0].curve()[0]
        curves = np.array([front.curve()[1] for front in fronts])
        mean = curves.mean(axis=0)
        # Side by side, so that no bar hides another; the ends are the same vectors for all.
        shift = (number - (len(shown) - 1) / 2) * 0.4
        least = fronts[0].macs[0]
        label = "one rate for all layers" if strategy == UNIFORM else strategy
        axes.errorbar(
            100 * (least + grid * (1 - least)) + shift, mean, [mean - curves.min(axis=0), curves.max(axis=0) - mean],
            color=colour, linestyle="--" if strategy == UNIFORM else "-", label=label, linewidth=1.6, elinewidth=1.0,
            capsize=2,
        )  # fmt: skip
    axes.set_xlabel("forward MACs per sample [% of the whole network's]")
    axes.set_ylabel("accuracy gain lost to dropout\n(0: nothing dropped, 1: half of every layer)")
