"""`leanfleet score` ranks runs of any family by accuracy, bytes and MACs together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import click
import typer

from leanfleet.cli.options import Json, RunFolders
from leanfleet.console import print_json, print_tables, width
from leanfleet.errors import UserError

_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*([kKMGTPE]?)", re.ASCII)
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_DEFAULT_BUDGET = "the most that any of them consumed"

BytesMax = Annotated[
    str | None,
    typer.Option(metavar="84.64G", help="Budget of bytes, up and down.", show_default=_DEFAULT_BUDGET),
]
MacsMax = Annotated[
    str | None,
    typer.Option(metavar="26.68T", help="Budget of the clients' MACs.", show_default=_DEFAULT_BUDGET),
]
Temperature = Annotated[float, typer.Option(help="T: how little the budgets count against accuracy.")]
ByteMode = Annotated[
    Literal["measured", "authors"],
    typer.Option(
        click_type=click.Choice(("measured", "authors")),
        help="Bytes as encoded, or as the authors of AdaSplit and of Sparse-Push count them.",
    ),
]
ComputeMode = Annotated[
    Literal["forward", "training"],
    typer.Option(
        click_type=click.Choice(("forward", "training")),
        help="Forward MACs, as the authors', or training MACs.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Where to put the plot.", show_default="the first RUN"
    ),
]


def score(
    runs: RunFolders,
    bytes_max: BytesMax = None,
    macs_max: MacsMax = None,
    temperature: Temperature = 8.0,
    byte_mode: ByteMode = "measured",
    compute_mode: ComputeMode = "forward",
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Rank runs of any family by the C3-Score, under budgets of bytes and MACs; draw accuracy against bytes."""
    from leanfleet.report import can_draw, draw_ranking, group, rank, read, render_ranking

    budgets = {
        "bytes_max": None if bytes_max is None else parse_quantity(bytes_max, "--bytes-max"),
        "macs_max": None if macs_max is None else parse_quantity(macs_max, "--macs-max"),
    }
    groups = group(read(runs))
    ranking = rank(groups, **budgets, temperature=temperature, byte_mode=byte_mode, compute_mode=compute_mode)
    if not can_draw():
        ranking["notes"].append("no plot: it needs matplotlib; pip install 'leanfleet[plots]'")
    if not as_json:
        print_tables(render_ranking(ranking, width()))
    plot = draw_ranking(ranking, groups, output or runs[0]) if can_draw() else None
    if as_json:
        print_json({**ranking, "plot": plot and str(plot)})
    else:
        print("\n".join([*ranking["notes"], *([f"plot: {plot}"] if plot else [])]))


def parse_quantity(text: str, option: str) -> float:
    """Return a number above 0 that may have an SI suffix, such as 84.64G.

    Args:
        text: What the user wrote.
        option: Where.

    Raises:
        UserError: It is none.
    """
    match = _QUANTITY.fullmatch(text.strip())
    value = float(match[1] + (match[2] or "")) * _FACTORS[match[3].replace("K", "k")] if match else 0.0
    if not 0.0 < value < float("inf"):
        raise UserError(f"{option} {text}: should be a number above 0, such as 1500000 or 84.64G")
    return value
