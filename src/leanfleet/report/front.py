"""A search's front as a PNG file, with what one rate for all layers comes to."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from leanfleet.storage import write_bytes
from leanfleet.subnet.lut import Lut

_COSTS = {"macs": "MACs", "seconds": "seconds of a step"}
_LINES = (
    ("uniform", "one rate for all layers", "s--", "#D55E00"),
    ("front", "a rate for every layer, searched", "o-", "#0072B2"),
)


def draw_front(lut: Lut, path: Path) -> Path | None:
    """Draw what a table's vectors lose against what they cost, one standard error up and down; return the file.

    None where nothing was measured.

    Args:
        lut: A table that a search has written.
        path: The file.

    Raises:
        StorageError: The disk refuses.
    """
    from matplotlib.figure import Figure

    lines = [
        line
        for line in _LINES
        if lut.about.get(line[0]) and (line[0] == "uniform" or lut.origin != "uniform")
    ]
    if not lines:
        return None
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    about = lut.about
    for key, label, style, colour in lines:
        points = sorted(about.get(key, []), key=lambda point: point[0])
        x, y, error = np.array(points, dtype=np.float64).reshape(-1, 3).T
        axes.errorbar(
            x,
            y,
            np.nan_to_num(error),
            fmt=style,
            color=colour,
            label=label,
            markersize=3.5,
            linewidth=1.2,
            elinewidth=0.8,
        )
    measure = about.get("measure", "accuracy")
    axes.set_xlabel(
        f"cost in {_COSTS.get(about.get('cost', 'macs'), 'MACs')}\n(0: half of every layer dropped, 1: nothing dropped)"
    )
    axes.set_ylabel(
        f"what a short training learns less, in {measure}\n(0: nothing dropped, 1: half of every layer)"
    )
    axes.set_title(_title(lut), loc="left", fontsize="medium")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="lower is better", alignment="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
    return path


def _title(lut: Lut) -> str:
    """Name network and search, and say what a bar is."""
    parts = [Path(str(lut.about["network"])).name] if "network" in lut.about else []
    count = lut.about.get("fresh_seeds", 0)
    seeds = (
        [f"standard error of {count} seeds"]
        if count > 1
        else ["one seed"]
        if "fresh_seeds" in lut.about
        else []
    )
    return ", ".join([*parts, lut.origin, *seeds])
