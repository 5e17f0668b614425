"""`leanfleet search` makes a lookup table, `leanfleet lut` shows one."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from leanfleet.cli.options import ImageColumn, Json, LabelColumn
from leanfleet.console import clock, print_json, print_tables, progress_bars, simple_table
from leanfleet.errors import StorageError, UserError, WorkerError

if TYPE_CHECKING:
    from leanfleet.search import Progress, Protocol
    from leanfleet.subnet.lut import Lut

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_SECONDS_BETWEEN_LINES = 5.0
_NO_MATPLOTLIB = "it needs matplotlib: pip install 'leanfleet[plots]'"
_TITLES = {
    "start": "pre-training",
    "anchors": "anchors",
    "search": "generation",
    "front": "final front, seed",
}

Network = Annotated[
    str,
    typer.Argument(
        metavar="NET",
        help="A reference network, or file.py:function of yours.",
    ),
]
Data = Annotated[
    str, typer.Option("--data", help="What the fleet will train on: a name, hf:owner/name or a path.")
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="LUT", help="File of the table.")]
ProtocolName = Annotated[
    str, typer.Option(help="fast, or paper: 20 times the short trainings until the front is known.")
]
Budget = Annotated[
    str | None,
    typer.Option(metavar="20m", help="Time for everything: 90s, 20m, 2h.", show_default="no limit"),
]
Cost = Annotated[str, typer.Option(help="macs, or seconds: step times profiled on this machine.")]
Keep = Annotated[
    list[str] | None, typer.Option(metavar="LAYER", help="Never drop this layer's channels; may be repeated.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted search for the same LUT.")]
Seed = Annotated[int, typer.Option(min=0, help="Everything random is drawn from it.")]
Lr = Annotated[float, typer.Option(help="Learning rate of short trainings: that of the fleet.")]


def search(
    network: Network,
    data: Data,
    out: Out,
    protocol: ProtocolName = "fast",
    budget: Budget = None,
    cost: Cost = "macs",
    keep: Keep = None,
    image: ImageColumn = None,
    label: LabelColumn = None,
    seed: Seed = 0,
    lr: Lr = 0.1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes.", show_default="one a core")
    ] = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Search Pareto-optimal dropout vectors for a network; write a table that DISTREAL's devices pick from."""
    # The imports below take seconds, too.
    begun = time.monotonic()
    seconds = None if budget is None else parse_time(budget)
    from dataclasses import replace

    from leanfleet.data import load
    from leanfleet.engines.local import default_workers
    from leanfleet.report import can_draw
    from leanfleet.report.front import draw_front
    from leanfleet.search import OPTIMISER, PROTOCOLS
    from leanfleet.search import search as run_search

    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: should be one of {', '.join(PROTOCOLS)}")
    if cost not in ("macs", "seconds"):
        raise UserError(f"--cost {cost}: should be macs or seconds")
    if not lr > 0:
        raise UserError(f"--lr {lr:g}: should be greater than 0")
    # Not after hours of searching. The plot of a table net.lut is net.png.
    if out.is_dir() or out.suffix == ".png":
        raise UserError(f"-o {out}: should be a file such as net.lut")
    picture = out.with_suffix(".png")
    for path in (out, picture):
        if path.exists():
            raise UserError(f"-o {out}: {path} is there already; take another name, or remove it first")
    with SearchDisplay(out, PROTOCOLS[protocol]) as display:
        lut = run_search(
            network,
            load(data, image=image, label=label),
            out,
            protocol=PROTOCOLS[protocol],
            cost="seconds" if cost == "seconds" else "macs",
            keep=tuple(keep) if keep else None,
            optimiser=replace(OPTIMISER, lr=lr),
            seed=seed,
            workers=workers or default_workers(),
            budget_seconds=seconds,
            begun=begun,
            resume=resume,
            watch=display,
        )
    plot = draw_front(lut, picture) if can_draw() else None
    _show(out, lut, as_json, plot)
    if plot is None:
        print(f"note: no plot; {'nothing was judged' if can_draw() else _NO_MATPLOTLIB}", file=sys.stderr)


def lut(
    file: Annotated[Path, typer.Argument(metavar="LUT", help="A table of dropout vectors.")],
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw its front and the line of one rate for all layers."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a table of dropout vectors: what each costs and loses."""
    from leanfleet.report import can_draw
    from leanfleet.report.front import draw_front
    from leanfleet.subnet.lut import Lut

    found = Lut.load(file)
    if plot is not None and not can_draw():
        raise UserError(f"--plot {plot}: {_NO_MATPLOTLIB}")
    if plot is not None and plot.exists():
        raise UserError(f"--plot {plot}: is there already; take another name, or remove it first")
    if plot is not None and draw_front(found, plot) is None:
        raise UserError(f"--plot {plot}: {file} has nothing that was judged, so there is nothing to draw")
    _show(file, found, as_json, plot)


def parse_time(text: str) -> float:
    """Return seconds from a time such as 90s, 20m or 1.5h.

    Raises:
        UserError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UserError(f"--budget {text}: should be a time such as 90s, 20m or 2h")
    return float(match[1]) * _UNITS[match[2]]


class SearchDisplay:
    """Shows how far a search is: a bar on a terminal, elsewhere a plain line now and then.

    Args:
        out: File of the table.
        protocol: How it searches.
    """

    def __init__(self, out: Path, protocol: Protocol) -> None:
        self._out, self._measure = out, protocol.measure
        # A fitted model asks a few times, and has no generations.
        self._titles = _TITLES | ({"search": "search"} if protocol.strategy == "model" else {})
        self._bars = progress_bars()
        self._printed = time.monotonic()
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._task = self._bars.add_task("starting", total=None, status="")
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        kept = self._out.with_name(self._out.name + ".partial")
        told = f"; {kept} is kept, go on with the same command and --resume" if kept.exists() else ""
        if isinstance(error, KeyboardInterrupt):
            print(f"interrupted{told}", file=sys.stderr)
            sys.exit(130)
        if isinstance(error, WorkerError | StorageError):
            error.args = (f"{error}{told}",)

    def __call__(self, progress: Progress) -> None:
        """Show progress; the search's `watch`."""
        measured = progress.hypervolume
        volume = "" if measured is None else f", hypervolume ({self._measure}) {measured:.3f}"
        title = self._titles[progress.phase]
        plain = f"{title}, {progress.share:.0%} done"
        if progress.steps > 1:
            title = f"{title} {progress.step}/{progress.steps}"
            plain = f"{title}, the next {progress.share:.0%} done"
        status = f"ETA {clock(progress.seconds_left)}{volume}"
        if self._bars is not None:
            done = progress.step + progress.share
            self._bars.update(
                self._task, description=title, total=progress.steps, completed=done, status=status
            )
        elif time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            print(f"{plain}: {status}", file=sys.stderr, flush=True)
            self._printed = time.monotonic()


def _show(file: Path, found: Lut, as_json: bool, plot: Path | None = None) -> None:
    about = {"origin": found.origin, "fingerprint": found.fingerprint, **found.about}
    if as_json:
        rows = [
            {
                "macs": row.macs,
                "f2": row.f2,
                "stderr": row.stderr,
                "seconds": row.seconds,
                "rates": list(row.rates),
            }
            for row in found.rows
        ]
        groups = [{"name": name, "channels": channels} for name, channels in found.groups]
        print_json({"file": str(file), **about, "groups": groups, "rows": rows, "plot": plot and str(plot)})
        return
    full = found.rows[-1].macs
    timed = found.rows[0].seconds is not None
    cells = [
        (
            str(number),
            f"{row.macs:,.0f}",
            f"{100 * row.macs / full:.1f}",
            "-" if row.f2 is None else f"{row.f2:.3f}",
            "-" if row.stderr is None else f"{row.stderr:.3f}",
            *([f"{1000 * (row.seconds or 0.0):.2f}"] if timed else []),
            f"{min(row.rates):.2f} to {max(row.rates):.2f}",
        )
        for number, row in enumerate(found.rows)
    ]
    names = ("row", "MACs", "% of full", "gain lost", "+-", *(["step ms"] if timed else []), "rates")
    known = [("origin", found.origin), ("groups", len(found.groups)), *_known(about)]
    print_tables([simple_table(str(file), ("what", "value"), known), simple_table(None, names, cells)])
    if plot is not None:
        print(f"plot: {plot}")


def _known(about: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what people want to know of a search; a hypervolume always with what it is of."""
    found = [(name, about[name]) for name in ("network", "data", "seed", "version") if name in about]
    if "start_accuracy" in about:
        found.append(("start_accuracy", f"{about['start_accuracy']:.3f}"))
    for name in ("hypervolume", "hypervolume_uniform"):
        for measure, volume in about.get(name, {}).items():
            found.append((f"{name} ({measure})", "-" if volume is None else f"{volume:.4f}"))
    found += [(name, about[name]) for name in ("training_samples", "seconds") if name in about]
    if "share_outside_training" in about:
        found.append(("outside training", f"{100 * about['share_outside_training']:.1f} %"))
    if about.get("fresh_seeds") and not about.get("judged", True):
        found.append(("judged", "no: with new seeds half of the network learns as much as all of it"))
    if about.get("interpolated"):
        found.append(("interpolated rows", len(about["interpolated"])))
    if about.get("cut_short"):
        found.append(("cut short", "; ".join(about["cut_short"])))
    return found
