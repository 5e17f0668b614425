"""A ranking as a PNG file: accuracy against bytes, a circle a group, as large as its clients' MACs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from leanfleet.report.plots import colour_of, colours, make_folder, save, shared_title
from leanfleet.report.records import Group
from leanfleet.report.score import Ranking, terms_text
from leanfleet.report.tables import precise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Line
    from matplotlib.transforms import Bbox

_FILE = "score.png"
_INCHES = (8.0, 5.0)
_DPI = 150
_POINTS_PER_INCH = 72
# Square points of the circle of whoever computes most; and what still shows.
_LARGEST, _SMALLEST = 700.0, 12.0
_LETTERS = 108
_GAPS = range(4, 200, 6)  # pixels from a circle to its label
_NEAR_PIXELS = 16
_CAP_PIXELS = 6
_LINE = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
_DARKER = 0.55
_WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))


@dataclass(frozen=True)
class _Point:
    """A group that can be drawn: per cent, bytes, square points."""

    label: str
    colour: str
    accuracy: float
    deviation: float
    bytes: float
    area: float


@dataclass(frozen=True)
class _Label:
    """A place for a label, in pixels, and the line to its circle where it is not beside it."""

    box: Bbox
    line: Line | None

    @classmethod
    def at(cls, box: Bbox, circle: Bbox) -> Self:
        from matplotlib.path import Path as Line

        beside = box.padded(_NEAR_PIXELS).overlaps(circle)
        return cls(box, None if beside else Line([_middle(box), _middle(circle)]))

    def crosses(self, other: _Label) -> bool:
        lines = ((self.line, other.box), (other.line, self.box))
        return any(line is not None and line.intersects_bbox(box) for line, box in lines)


def draw_ranking(ranking: Ranking, groups: Sequence[Group], folder: Path) -> Path:
    """Draw accuracy against bytes (logarithmic) of every group, its area in proportion to the clients' MACs.

    Labels carry scores, and the foot what they were given under. Bars reach one standard deviation over seeds up
    and down. A group that has sent nothing stands at the left edge.

    Args:
        ranking: What `rank` returned.
        groups: What it was given; a group has the same colour here as in `draw`.
        folder: Where to put the file; made if it is not there.

    Returns:
        The file.

    Raises:
        StorageError: The disk refuses.
    """
    from matplotlib.figure import Figure

    make_folder(folder)
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    most = max((row["client_macs"]["mean"] for row in ranking["groups"] if row["client_macs"]), default=0.0)
    # Large circles first, or they would hide small ones.
    points = sorted(_points(ranking, groups, most), key=lambda point: -point.area)
    places = _places(axes, points)
    for point, x in zip(points, places, strict=True):
        _mark(axes, x, point)
    _dress(figure, axes, ranking, groups)
    if most:
        _explain_sizes(figure, most, ranking["terms"]["compute_mode"])
    _label(figure, axes, points, places)
    return save(figure, folder / _FILE)


def _mark(axes: Axes, x: float, point: _Point) -> None:
    if point.deviation:
        axes.errorbar(
            x, point.accuracy, point.deviation, fmt="none", ecolor=point.colour, elinewidth=1.2, capsize=3, zorder=2
        )  # fmt: skip
    # Not cut off at 100 %.
    axes.scatter(
        x, point.accuracy, point.area, color=point.colour, alpha=0.6, edgecolor="black", zorder=3, clip_on=False
    )  # fmt: skip


def _points(ranking: Ranking, groups: Sequence[Group], most: float) -> Iterator[_Point]:
    rows = {row["label"]: row for row in ranking["groups"]}
    for group, number in zip(groups, colours(groups), strict=True):
        row = rows[group.label]
        if row["c3"] is None:
            continue
        remarks = (" !" if row["over_budget"] else "") + ("" if row["bytes"]["mean"] else "; 0 B")
        yield _Point(
            f"{group.label} ({row['c3']['mean']:.4f}{remarks})",
            colour_of(number),
            100 * row["accuracy"]["mean"],
            100 * (row["accuracy"]["std"] or 0.0),
            row["bytes"]["mean"],
            _area(row["client_macs"]["mean"], most),
        )


def _area(macs: float, most: float) -> float:
    return max(_SMALLEST, _LARGEST * macs / most) if most else _SMALLEST


def _places(axes: Axes, points: Sequence[_Point]) -> list[float]:
    """Set the scale and return where along it points are; no bytes at all are drawn a decade below the fewest."""
    sent = [point.bytes for point in points if point.bytes]
    low, high = min(sent, default=1e3), max(sent, default=1e3)
    places = [point.bytes or low / 10 for point in points]
    axes.set_xscale("log")
    # Room for circles and labels; at least a decade, so that there are ticks.
    margin = max(0.12 * math.log10(high / min([*places, high])), 0.5)
    axes.set_xlim(min([*places, high]) / 10**margin, high * 10**margin)
    return places


def _dress(figure: Figure, axes: Axes, ranking: Ranking, groups: Sequence[Group]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"bytes sent and received by all clients ({ranking['terms']['byte_mode']})")
    axes.set_ylabel("accuracy of the network in use [%]")
    axes.margins(y=0.2)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    bottom, top = axes.get_ylim() if any(row["c3"] for row in ranking["groups"]) else (0, 100)
    axes.set_ylim(max(bottom, -5), min(top, 105))
    axes.set_title(
        shared_title(groups, over_seeds="mean and standard deviation"), loc="left", fontsize="medium"
    )
    lines = [textwrap.fill(line, _LETTERS) for line in terms_text(ranking).splitlines()]
    foot = "\n".join(["in brackets: the C3-Score", *lines])
    figure.supxlabel(foot, x=0.01, ha="left", fontsize="x-small", color="#404040")


def _explain_sizes(figure: Figure, most: float, compute_mode: str) -> None:
    """Add a legend of three round numbers of MACs, each with its circle."""
    from matplotlib.lines import Line2D

    top = 10 ** math.floor(math.log10(most))
    largest = max(step * top for step in (1, 2, 5) if step * top <= most)
    handles = [
        Line2D(
            [], [], linestyle="", marker="o", color="#B0B0B0", markeredgecolor="black", label=precise(macs),
            markersize=math.sqrt(_area(macs, most)),
        )
        for macs in (largest, largest / 4, largest / 20)
    ]  # fmt: skip
    figure.legend(
        handles=handles,
        title=f"client MACs\n({compute_mode})",
        loc="outside right upper",
        frameon=False,
        labelspacing=1.4,
        handletextpad=1.2,
        borderpad=1.0,
    )


def _label(figure: Figure, axes: Axes, points: Sequence[_Point], places: Sequence[float]) -> None:
    """Write every label where it touches no circle and no other label; from afar with a line to its circle."""
    from matplotlib.colors import to_rgb

    # Only a figure that has been laid out knows where everything stands.
    figure.draw_without_rendering()
    circles = [_circle(axes, x, point) for x, point in zip(places, points, strict=True)]
    bars = [_bar(axes, x, point) for x, point in zip(places, points, strict=True)]
    labels: list[_Label] = []
    for point, place, circle in zip(points, places, circles, strict=True):
        # In the colour of its circle, which may be one among many in a heap.
        colour = tuple(_DARKER * part for part in to_rgb(point.colour))
        text = axes.annotate(
            point.label, (place, point.accuracy), (0, 0), textcoords="offset points", ha="center", va="center",
            fontsize="small", zorder=4, color=colour, arrowprops=_LINE | {"color": colour},
        )  # fmt: skip
        # Else the axes would shrink to make room, and nothing would stand where it was measured.
        text.set_in_layout(False)
        extent = text.get_window_extent()
        found = _free(circle, (extent.width + 4, extent.height + 4), circles + bars, labels, axes.bbox)
        labels.append(found)
        shift = (_middle(found.box) - _middle(circle)) * _POINTS_PER_INCH / _DPI
        text.set_position((float(shift[0]), float(shift[1])))
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(found.line is not None)


def _circle(axes: Axes, x: float, point: _Point) -> Bbox:
    from matplotlib.transforms import Bbox

    across, up = axes.transData.transform((x, point.accuracy))
    radius = math.sqrt(point.area) / 2 * _DPI / _POINTS_PER_INCH
    return Bbox.from_extents(across - radius, up - radius, across + radius, up + radius)


def _bar(axes: Axes, x: float, point: _Point) -> Bbox:
    from matplotlib.transforms import Bbox

    reach = np.array([[x, point.accuracy - point.deviation], [x, point.accuracy + point.deviation]])
    return Bbox(axes.transData.transform(reach)).padded(_CAP_PIXELS)


def _free(
    circle: Bbox, size: tuple[float, float], taken: Sequence[Bbox], labels: Sequence[_Label], inside: Bbox
) -> _Label:
    """Return the nearest place around a circle that is free; if there is none, a line may cross a label."""
    tried = [_Label.at(box, circle) for gap in _GAPS for box in _around(circle, gap, size)]
    others = [*taken, *(label.box for label in labels)]
    free = [
        label
        for label in tried
        if inside.x0 <= label.box.x0 and label.box.x1 <= inside.x1
        if inside.y0 <= label.box.y0 and label.box.y1 <= inside.y1
        if not label.box.count_overlaps(others)
    ]
    clear = (label for label in free if not any(label.crosses(other) for other in labels))
    return next(clear, (free or tried)[0])


def _around(circle: Bbox, gap: float, size: tuple[float, float]) -> Iterator[Bbox]:
    from matplotlib.transforms import Bbox

    (x, y), (width, height) = _middle(circle), size
    for right, up in _WAYS:
        # On a diagonal a corner of the box is as near as a side is otherwise.
        reach = (circle.width / 2 + gap) * (math.sqrt(0.5) if right and up else 1.0)
        left = x + right * (reach + width / 2) - width / 2
        yield Bbox.from_bounds(left, y + up * (reach + height / 2) - height / 2, width, height)


def _middle(box: Bbox) -> npt.NDArray[np.float64]:
    return np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
