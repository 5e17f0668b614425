"""Learning curves as PNG files: accuracy against rounds, virtual time and MACs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from leanfleet.errors import StorageError
from leanfleet.experiment import METHODS
from leanfleet.report.records import Group
from leanfleet.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]

# Okabe and Ito (2008): told apart with any colour vision; their yellow is too light for a line.
_FIRST = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Where there are more lines than these: of Paul Tol's muted colours, and drawn in another style.
_MORE = ("#882255", "#999933", "#332288", "#7F7F7F", "#CC6677")
_COLOURS = (*_FIRST, *_MORE)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "*", "h")
_SETTING = (("data", "source"), ("data", "partition"), ("network", "name"))
_FEW = 40


@dataclass(frozen=True)
class _Axis:
    """What a plot goes along: key of the events, file, label."""

    key: str
    file: str
    label: str


_AXES = (
    _Axis("round", "accuracy-rounds.png", "round"),
    _Axis("seconds_virtual", "accuracy-time.png", "virtual time [s]"),
    _Axis("macs_total", "accuracy-macs.png", "training MACs of all devices"),
)


@dataclass(frozen=True)
class Band:
    """Repetitions of one experiment, evaluation by evaluation.

    Attributes:
        x: [evaluations] mean place over runs.
        mean: [evaluations] mean accuracy over runs.
        low: [evaluations] least accuracy of any run.
        high: [evaluations] greatest accuracy of any run.
    """

    x: Values
    mean: Values
    low: Values
    high: Values


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(groups: Sequence[Group], folder: Path, title: str = "") -> list[Path]:
    """Draw accuracy against rounds, virtual time and MACs, a line and a colour a group; return the files.

    The line is the mean over seeds, the band reaches from the least to the greatest. Evaluation A, network in use.
    Twelve groups can be told apart.

    Args:
        groups: What to draw.
        folder: Where to put the files; made if it is not there.
        title: Stands in front of what all groups share.

    Raises:
        StorageError: The disk refuses.
    """
    make_folder(folder)
    return [_draw(groups, axis, folder / axis.file, title) for axis in _AXES]


def make_folder(folder: Path) -> None:
    """Make a folder for plots, if it is not there.

    Raises:
        StorageError: The disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file, whole or not at all; return the file.

    Raises:
        StorageError: The disk refuses.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
    return path


def band(group: Group, over: str) -> Band:
    """Return mean and reach of the learning curves of a group, at the rounds that all its runs evaluated.

    Args:
        group: Repetitions of one experiment.
        over: Key of the events to go along.
    """
    runs = [{event["round"]: event for event in record.evaluations} for record in group.records]
    rounds = sorted(set.intersection(*(set(run) for run in runs)))
    x, y = (
        np.array([[run[n][key] for n in rounds] for run in runs], dtype=np.float64)
        for key in (over, "accuracy")
    )
    return Band(x.mean(axis=0), y.mean(axis=0), y.min(axis=0), y.max(axis=0))


def colours(groups: Sequence[Group]) -> list[int]:
    """Return a different number for each group: the same for a method in every plot, as far as that goes."""
    preferred = list(METHODS)
    wishes = {preferred.index(group.method) for group in groups if group.method in preferred}
    # What no method has for itself goes first to those that come to a method's colour too late.
    others = [*range(len(preferred), len(_COLOURS)), *range(len(_COLOURS) + len(groups))]
    taken: list[int] = []
    for group in groups:
        wish = [preferred.index(group.method)] if group.method in preferred else []
        free = (n for n in (*wish, *(n for n in others if n not in wishes)) if n not in taken)
        taken.append(next(free))
    return taken


def colour_of(number: int) -> str:
    """Return the colour that goes with a number of `colours`."""
    return _COLOURS[number % len(_COLOURS)]


def _draw(groups: Sequence[Group], axis: _Axis, path: Path, title: str) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for group, number in zip(groups, colours(groups), strict=True):
        _line(axes, group, axis.key, number)
    _dress(axes, axis)
    axes.set_title(shared_title(groups, title), loc="left", fontsize="medium")
    # Beside the data: curves of good methods fill every corner.
    figure.legend(loc="outside right upper", frameon=False)
    return save(figure, path)


def _line(axes: Axes, group: Group, key: str, number: int) -> None:
    found = band(group, key)
    colour = colour_of(number)
    # Markers only where the evaluations can be told apart; a single one would be invisible without.
    marker = _MARKERS[number % len(_MARKERS)] if len(found.x) <= _FEW else ""
    full = group.method in METHODS and METHODS[group.method].resources == "full"
    usual = "-" if number < len(_FIRST) else "-." if number < len(_COLOURS) else ":"
    style: dict[str, Any] = {"linestyle": "--" if full else usual, "marker": marker, "markersize": 4}
    axes.plot(found.x, 100 * found.mean, color=colour, label=group.label, linewidth=1.8, **style)
    if len(group.records) > 1:
        axes.fill_between(found.x, 100 * found.low, 100 * found.high, color=colour, alpha=0.18, linewidth=0)


def _dress(axes: Axes, axis: _Axis) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlabel(axis.label)
    axes.set_ylabel("accuracy of the network in use [%]")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axis.key == "round":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axis.key == "macs_total":
        axes.xaxis.set_major_formatter(EngFormatter())
    # Nothing to see below 0 or above 100, but a margin keeps markers whole.
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))
    axes.set_xlim(left=0)


def shared_title(groups: Sequence[Group], title: str = "", over_seeds: str = "mean and range") -> str:
    """Name what all groups share, and say what is shown of several seeds."""
    records = [record for group in groups for record in group.records]
    shared = [{r.config.get(section, {}).get(key) for r in records} for section, key in _SETTING]
    # A source may be a path.
    parts = [title] if title else []
    parts += [Path(value).name for values in shared if len(values) == 1 for value in values if value]
    seeds = sorted({len(group.records) for group in groups})
    if seeds[-1] > 1:
        parts.append(f"{over_seeds} of {seeds[0]}{'' if len(seeds) == 1 else f' to {seeds[-1]}'} seeds")
    return ", ".join(parts)
