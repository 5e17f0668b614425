"""A graph of links as a PNG file: a panel a phase, arrows for small fleets and a matrix for large ones."""

from __future__ import annotations

import io
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from leanfleet.fleet import Graph
from leanfleet.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More arrows than these nodes have are a blot.
_ARROW_NODES = 32
_PANELS = 8
_PANELS_PER_ROW = 4
_BINS = 200
# Smaller nodes have their number beside them.
_LABEL_RADIUS = 0.09
_MANY_LINKS = 200
_ONE_WAY, _BOTH_WAYS, _NODE, _RIM = "#0072B2", "#D55E00", "#F0F0F0", "#404040"
_INCHES = 3.2
_LETTERS_PER_INCH = 10


def draw_graph(graph: Graph, path: Path) -> Path:
    """Draw who sends to whom in each phase, at most eight; return the file.

    Nodes stand on a circle, from the top clockwise; a link with an equal the other way is drawn in another colour.
    For more than 32 nodes a panel shows the matrix of links, senders along and receivers down.

    Args:
        graph: What to draw.
        path: The file.

    Raises:
        StorageError: The disk refuses.
    """
    from matplotlib.figure import Figure

    shown = min(len(graph.phases), _PANELS)
    columns = min(shown, _PANELS_PER_ROW)
    rows = math.ceil(shown / columns)
    # A single panel of three inches has no room for its title.
    inches = _INCHES if shown > 1 else 1.6 * _INCHES
    figure = Figure(figsize=(inches * columns, inches * rows + 0.7), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    small = graph.nodes <= _ARROW_NODES
    for number, axes in enumerate(panels):
        if number >= shown:
            axes.set_axis_off()
            continue
        (_arrows if small else _matrix)(axes, graph, number)
        if len(graph.phases) > 1:
            axes.set_title(_when(graph, number), fontsize="medium")
    title = textwrap.fill(_title(graph, shown), int(_LETTERS_PER_INCH * inches * columns))
    figure.suptitle(title, fontsize="medium")
    if small:
        _legend(figure, graph, shown)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
    return path


def _arrows(axes: Axes, graph: Graph, number: int) -> None:
    angles = 2 * np.pi * np.arange(graph.nodes) / graph.nodes
    places = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    # A link to the next but one must pass the node between.
    radius = min(0.13, 0.9 * (1 - math.cos(2 * math.pi / graph.nodes)))
    axes.set(aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
    axes.set_axis_off()
    links = _links(graph, number)
    width = 0.0055 if radius >= _LABEL_RADIUS else 0.0035 if len(links) < _MANY_LINKS else 0.0015
    both = _mutual(links)
    for chosen, colour in ((links[~both], _ONE_WAY), (links[both], _BOTH_WAYS)):
        if len(chosen):
            _quiver(axes, places[chosen[:, 0]], places[chosen[:, 1]], radius, width=width, color=colour)
    _circles(axes, places, radius)


def _quiver(
    axes: Axes,
    tails: npt.NDArray[np.float64],
    heads: npt.NDArray[np.float64],
    radius: float,
    *,
    width: float,
    color: str,
) -> None:
    """Draw arrows from the rim of one node to that of another."""
    way = heads - tails
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    start, end = tails + radius * way, heads - radius * way
    axes.quiver(
        *start.T, *(end - start).T, color=color, angles="xy", scale_units="xy", scale=1, width=width,
        headwidth=5, headlength=6, headaxislength=5.5, minlength=0,
    )  # fmt: skip


def _circles(axes: Axes, places: npt.NDArray[np.float64], radius: float) -> None:
    from matplotlib.collections import EllipseCollection

    size, inside = np.full(len(places), 2 * radius), radius >= _LABEL_RADIUS
    circles = EllipseCollection(
        size, size, np.zeros(len(places)), units="xy", offsets=places, offset_transform=axes.transData,
        facecolor=_NODE if inside else _RIM, edgecolor=_RIM, linewidth=0.8, zorder=3,
    )  # fmt: skip
    axes.add_collection(circles)
    for node, (x, y) in enumerate(places if inside else 1.1 * places):
        axes.text(x, y, str(node), ha="center", va="center_baseline", fontsize=10 if inside else 8, zorder=4)


def _matrix(axes: Axes, graph: Graph, number: int) -> None:
    links = _links(graph, number)
    bins = min(graph.nodes, _BINS)
    edges = np.linspace(0, graph.nodes, bins + 1)
    # A link among so many nodes is narrower than a pixel, and would vanish unless it fills one.
    filled = np.histogram2d(links[:, 1], links[:, 0], bins=(edges, edges))[0] > 0
    axes.imshow(
        np.where(filled, 1.0, 0.0),
        cmap="Blues",
        vmin=0,
        vmax=1.25,
        interpolation="nearest",
        extent=(0, graph.nodes, graph.nodes, 0),
    )
    axes.set_xlabel("sender")
    axes.set_ylabel("receiver")


def _links(graph: Graph, number: int) -> npt.NDArray[np.int64]:
    pairs = [(sender, to) for sender, receivers in enumerate(graph.phases[number]) for to in receivers]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _mutual(links: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    known = {(sender, receiver) for sender, receiver in links.tolist()}
    return np.array([(receiver, sender) in known for sender, receiver in links.tolist()], dtype=bool)


def _legend(figure: Figure, graph: Graph, shown: int) -> None:
    """Name the colours; where all links are one way nobody asks."""
    from matplotlib.lines import Line2D

    mutual = np.concatenate([_mutual(_links(graph, number)) for number in range(shown)])
    if mutual.any():
        names = (
            [(_BOTH_WAYS, "both ways")]
            if mutual.all()
            else [(_ONE_WAY, "one way"), (_BOTH_WAYS, "both ways")]
        )
        lines = [Line2D([], [], color=colour, label=label) for colour, label in names]
        figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)


def _when(graph: Graph, number: int) -> str:
    """Say at which steps of a period a phase is there."""
    first = number * graph.hold_steps
    last = first + graph.hold_steps - 1
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _title(graph: Graph, shown: int) -> str:
    parts = [graph.name, f"{graph.nodes} nodes"]
    if len(graph.phases) > 1:
        parts.append(f"period {graph.period}")
    if shown < len(graph.phases):
        parts.append(f"the first {shown} of {len(graph.phases)} phases")
    return ", ".join(parts)
