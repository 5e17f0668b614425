"""A search's front as a PNG file, with what one rate for all layers comes to."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from leanfleet.storage import write_bytes
from leanfleet.subnet.lut import Lut


def draw_front(lut: Lut, path: Path) -> Path:
    """Draw the second objective against the first, one standard error up and down; return the file.

    Args:
        lut: A table that a search has written.
        path: The file.

    Raises:
        StorageError: The disk refuses.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for key, label, style, colour in (
        ("uniform", "one rate for all layers", "s--", "#D55E00"),
        ("front", "searched", "o-", "#0072B2"),
    ):
        x, y, error = np.array(sorted(lut.about.get(key, [])), dtype=np.float64).reshape(-1, 3).T
        axes.errorbar(
            x, y, error, fmt=style, color=colour, label=label, markersize=3.5, linewidth=1.2, elinewidth=0.8
        )
    axes.set_xlabel(f"cost ({lut.about.get('cost', 'macs')}): 0 half of everything dropped, 1 nothing")
    axes.set_ylabel("gain lost: 0 none, 1 as with half dropped")
    axes.set_title(f"{lut.about.get('network', '')}, {lut.origin}", loc="left", fontsize="medium")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
    return path
