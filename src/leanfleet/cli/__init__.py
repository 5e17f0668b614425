"""The commands: parse, call, print.

Nothing heavy is imported before a command needs it, so that `leanfleet --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperGroup

from leanfleet.cli import peers
from leanfleet.cli.fleet import fleet, watch
from leanfleet.cli.graph import graph
from leanfleet.cli.inference import evaluate, export
from leanfleet.cli.nets import NetsCommand, nets
from leanfleet.cli.options import (
    Device,
    DeviceBefore,
    Engine,
    EngineName,
    File,
    Files,
    Json,
    RunFolder,
    RunFolders,
    Set,
    Workers,
)
from leanfleet.cli.score import score
from leanfleet.cli.search import lut, search
from leanfleet.console import Display, print_json, print_tables, simple_table, width
from leanfleet.errors import LeanfleetError, UserError

if TYPE_CHECKING:
    from leanfleet.experiment import Experiment

_DEBUG = "LEANFLEET_DEBUG"
_ROOT = Path("runs")
_DEMO_METHODS = ("distreal", "federated-dropout", "small", "fedavg")
_DEMO_SEEDS = 2


class _Commands(TyperGroup):
    """Takes `--debug` anywhere on the line, where one adds it when something has gone wrong."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, sorted(args, key=lambda arg: arg != "--debug"))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # typer and click both suggest what was meant; once is enough.
        return click.Group.resolve_command(self, ctx, args)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; every error becomes one line on stderr and an exit code."""
    # As Ctrl-C: what is kept is said, and workers end in order.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(app(prog_name="leanfleet", standalone_mode=False))
    except click.UsageError as error:
        # Without any argument the help has been printed, and there is nothing to add.
        if not error.format_message():
            sys.exit(error.exit_code)
        path = error.ctx.command_path if error.ctx else "leanfleet"
        _fail(f"{error.format_message().rstrip('.')} ({path} --help shows how)", error.exit_code)
    except LeanfleetError as error:
        _fail(str(error), 2 if isinstance(error, UserError) else 1)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (unexpected: --debug shows where)", 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> None:
    if os.environ.get(_DEBUG):
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"leanfleet {version('leanfleet')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar=_DEBUG, help="Show where an error comes from.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train one PyTorch network over a fleet of devices that differ in what they can spend."""
    if debug:
        os.environ[_DEBUG] = "1"


@app.command()
def demo(workers: Workers = None, as_json: Json = False) -> None:
    """Train a small fleet on embedded data with four methods, and say what came out."""
    from importlib.resources import files

    from leanfleet.experiment import loads
    from leanfleet.report import sentence

    text = files("leanfleet").joinpath("demo.toml").read_text(encoding="utf-8")
    tables = _compare([loads(text)], _DEMO_METHODS, _DEMO_SEEDS, "demo", workers, "cpu", as_json)
    if not as_json:
        print(f"\n{sentence(tables)}")


@app.command()
def run(
    file: File,
    overrides: Set = None,
    workers: Workers = None,
    device: Device = "cpu",
    engine: Engine = EngineName.local,
    as_json: Json = False,
) -> None:
    """Run an experiment and keep a record of it in runs/."""
    from leanfleet.engines import local
    from leanfleet.experiment import load

    experiment = load(file, overrides or ())
    if engine is EngineName.peers:
        peers.check(workers, device)
        _show_peers(peers.run(experiment, _ROOT), as_json)
        return
    with Display(_ROOT) as display:
        record = local.run(experiment, root=_ROOT, workers=workers, device=device, watch=display)
    _show_runs([record.folder], as_json)


@app.command()
def compare(
    files: Files,
    methods: Annotated[
        str, typer.Option(metavar="A,B,C", help="Methods.", show_default="each file's own")
    ] = "",
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each, with the file's seed and the next ones.")
    ] = 3,
    overrides: Set = None,
    workers: Workers = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Run experiments with several methods and seeds; print tables and draw curves.

    `leanfleet resume` goes on with a comparison that was interrupted.
    """
    from leanfleet.experiment import load

    experiments = [load(file, overrides or ()) for file in files]
    name = f"compare-{experiments[0].experiment.name}" if len(files) == 1 else "comparison"
    _compare(
        experiments,
        [m.strip() for m in methods.split(",") if m.strip()],
        seeds,
        name,
        workers,
        device,
        as_json,
    )


@app.command()
def resume(
    run: RunFolder,
    workers: Workers = None,
    device: DeviceBefore = None,
    engine: Engine = EngineName.local,
    as_json: Json = False,
) -> None:
    """Go on with a run or a comparison that was interrupted."""
    from leanfleet.engines import local
    from leanfleet.engines.compare import is_comparison, is_finished
    from leanfleet.runs import Run

    if engine is EngineName.peers:
        peers.check(workers, device)
        if peers.speaks() and Run.open(run).finished:
            print(f"{run}: already finished", file=sys.stderr)
        _show_peers(peers.resume(run), as_json)
        return
    together = is_comparison(run)
    if is_finished(run) if together else Run.open(run).finished:
        print(f"{run}: already finished", file=sys.stderr)
    if together:
        _go_on(run, workers, device, as_json)
        return
    with Display(run.parent, resumes=run) as display:
        local.resume(run, workers=workers, device=device, watch=display)
    _show_runs([run], as_json)


@app.command()
def merge(
    run: RunFolder,
    rounds: Annotated[
        int | None,
        typer.Option(min=0, help="Dense exchanges.", show_default="as many as the graph needs"),
    ] = None,
    workers: Workers = None,
    device: DeviceBefore = None,
    as_json: Json = False,
) -> None:
    """Let the nodes of a gossip run agree by dense exchanges without training, in a record of its own beside it."""
    from leanfleet.engines import local

    with Display(run.parent) as display:
        merged = local.merge(run, rounds=rounds, workers=workers, device=device, watch=display)
    _show_runs([run, merged.folder], as_json)


@app.command()
def report(
    runs: RunFolders,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where to put the plots.",
            show_default="RUN; report/ for several",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print tables of runs and draw their learning curves; of several seeds, mean and deviation."""
    # The pictures of a record are its own.
    _show_runs(runs, as_json, plots=output or (runs[0] if len(runs) == 1 else Path("report")))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show versions, cores, GPUs, and which data sets are found."""
    from leanfleet.engines.describe import machine

    found = machine()
    if as_json:
        print_json(found)
        return
    data, packages = found.pop("data"), found.pop("packages")
    found["gpus"] = ", ".join(found["gpus"]) or "none"
    found["data_folder"] = found["data_folder"] or "none (LEANFLEET_DATA is not set)"
    print_tables([
        simple_table("machine", ("what", "value"), found.items()),
        simple_table("packages", ("package", "version"), ((k, v or "not installed") for k, v in packages.items())),
        simple_table("data sets", ("name", "where"), ((k, v or "not found") for k, v in data.items())),
    ])  # fmt: skip


app.command()(evaluate)
app.command()(export)
app.command(cls=NetsCommand)(nets)
app.command()(search)
app.command()(lut)
app.command()(graph)
app.command()(fleet)
app.command()(watch)
app.command()(score)


def _show_peers(folder: Path | None, as_json: bool) -> None:
    if folder is not None:
        _show_runs([folder], as_json)


def _compare(
    experiments: Sequence[Experiment],
    methods: Sequence[str],
    seeds: int,
    name: str,
    workers: int | None,
    device: str,
    as_json: bool,
) -> Any:
    from leanfleet.engines.compare import begin, variants

    chosen = variants(experiments, methods, seeds)
    folder = begin(chosen, root=_ROOT, name=name, workers=workers, device=device)
    return _go_on(folder, workers, device, as_json)


def _go_on(folder: Path, workers: int | None, device: str | None, as_json: bool) -> Any:
    """Run what is left of a comparison and report on it."""
    from leanfleet.engines.compare import planned, resume_comparison

    with Display(folder, list(planned(folder).experiments), folder) as display:
        runs = resume_comparison(folder, workers=workers, device=device, watch=display)
    return _show_runs([run.folder for run in runs], as_json, plots=folder)


def _show_runs(folders: Sequence[Path], as_json: bool, plots: Path | None = None) -> Any:
    """Print the tables of runs and where they are; draw their curves into `plots`. Several families are ranked too."""
    from leanfleet.report import (
        can_draw,
        draw,
        draw_ranking,
        group,
        rank,
        read,
        render,
        render_ranking,
        summarise,
    )

    groups = group(read(folders))
    tables = summarise(groups)
    ranking = rank(groups) if len({group.family for group in groups}) > 1 else None
    if plots is not None and not can_draw():
        tables["notes"].append("no plots: they need matplotlib; pip install 'leanfleet[plots]'")
    if not as_json:
        # Before the plots: a folder that cannot be written to is no reason to keep the numbers back.
        print_tables([*render(tables, width()), *(render_ranking(ranking, width()) if ranking else ())])
        for note in dict.fromkeys([*tables["notes"], *(ranking["notes"] if ranking else ())]):
            print(note)
    files: list[Path] = []
    if plots is not None and can_draw():
        files = [*draw(groups, plots), *([draw_ranking(ranking, groups, plots)] if ranking else [])]
    if as_json:
        scored = {"score": ranking} if ranking else {}
        print_json({**tables, **scored, "plots": [str(file) for file in files]})
    else:
        print("\n".join([f"plot: {file}" for file in files] if plots else [f"record: {f}" for f in folders]))
    return tables
