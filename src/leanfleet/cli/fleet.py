"""`leanfleet fleet` takes an experiment to real devices; `leanfleet watch` shows them at work."""

from __future__ import annotations

import ipaddress
import json
import math
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanfleet.cli.options import File, Json, RunFolder, Set
from leanfleet.console import print_json, print_tables, simple_table
from leanfleet.errors import RecordError, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from leanfleet.experiment import Experiment

_SHORTEST_SECONDS = 10.0
_OLD_SECONDS = 60.0
_HOST = re.compile(r"(?=.{1,253}$)([A-Za-z0-9-]{1,63}\.)*[A-Za-z0-9-]{1,63}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_COLUMNS = ("device", "state", "MAC/s", "kept", "of MACs", "MACs", "bytes up", "bytes down")
_BARS = "▁▂▃▄▅▆▇█"

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Where to.", show_default="the experiment's name"),
]

Nodes = Annotated[
    int | None,
    typer.Option(
        min=1, help="Devices to make keys and commands for.", show_default="as many as a round selects"
    ),
]


def fleet(
    file: File,
    overrides: Set = None,
    output: Output = None,
    nodes: Nodes = None,
    host: Annotated[str, typer.Option(help="Name or address of the SuperLink.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 8000,
    as_json: Json = False,
) -> None:
    """Write a Flower app for an experiment, with keys to try it, and print the commands that start it."""
    try:
        import flwr
    except ImportError as error:
        raise UserError("real fleets need Flower: pip install 'leanfleet[flower]'") from error
    from leanfleet.engines.flower import check
    from leanfleet.engines.flower.writing import commands, write_app, write_keys
    from leanfleet.experiment import load

    experiment = load(file, overrides or ())
    check(experiment)
    if not _HOST.fullmatch(host):
        raise UserError(
            f"--host {host!r}: should be a name or an address, such as fleet.example.org or 10.0.0.1"
        )
    nodes = _nodes(experiment, nodes)
    folder = output or Path(experiment.experiment.name)
    write_app(experiment, folder, Path("runs").resolve())
    write_keys(folder, nodes, host, port)
    lines = commands(folder, nodes, host, port)
    if as_json:
        print_json({"app": str(folder), "flwr": flwr.__version__, "commands": lines})
        return
    print(f"# app: {folder}; every line that starts a server or a node needs a terminal, or & at its end")
    if not _is_here(host):
        print(
            "# Flower takes commands and nodes at one port: who can reach it, and has ca.crt, can start runs and "
            "register nodes; see docs/flower.md"
        )
    print("\n".join(lines))
    alone = "FLWR_HOME=$(mktemp -d) FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 RAY_USAGE_STATS_ENABLED=0"
    simulated = (
        f"cd {shlex.quote(str(folder))}; {alone} flwr run . --federation-config num-supernodes={nodes}"
    )
    print(f"# or all of it simulated here, which takes Ray (pip install 'flwr[simulation]'): {simulated}")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _nodes(experiment: Experiment, asked: int | None) -> int:
    """Return how many nodes to write for, checked against what the rounds need."""
    from leanfleet.experiment import FederatedFleet, SplitFleet

    fleet = experiment.fleet
    key, needed = "devices", fleet.devices
    if isinstance(fleet, FederatedFleet):
        key, needed = "per_round", fleet.per_round
        _check_seconds("round_seconds", fleet.round_seconds, 1)
    elif isinstance(fleet, SplitFleet):
        needed = None if needed is None else needed - fleet.held_out
        if fleet.iteration_seconds is not None:
            times = getattr(experiment.options, "selection_window", 1)
            _check_seconds("iteration_seconds", fleet.iteration_seconds, times)
    nodes = asked or needed
    if nodes is None:
        raise UserError("--nodes: say how many; the experiment's data decide how many devices there are")
    if nodes < (needed or 0):
        raise UserError(f"--nodes {nodes}: a round needs {needed}; give more, or --set fleet.{key}={nodes}")
    return nodes


def _check_seconds(key: str, seconds: float, times: int) -> None:
    """Check that a message's answer can be there in time."""
    if seconds * times < _SHORTEST_SECONDS:
        whole = "" if times == 1 else f" for each of the {times} mini-batches of a message"
        raise UserError(
            f"[fleet] {key} = {seconds:g}: are real seconds here{whole}, and a message alone takes about "
            f"{_SHORTEST_SECONDS:g}; try --set fleet.{key}={3 * _SHORTEST_SECONDS / times:.1f}"
        )


def watch(
    run: RunFolder,
    once: Annotated[bool, typer.Option("--once", help="Show what is known now, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Show a real fleet at work: device, state, measured rate, vector in use, MACs and bytes.

    A bar a layer is what the last step kept of its channels, "of MACs" what that is of the whole network's.
    """
    from leanfleet.runs import Run

    record = Run.open(run)
    if once or as_json:
        status = _status(run)
        print_json(status) if as_json else print_tables([_table(status)])
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, refresh_per_second=2) as live:
        while True:
            finished = record.finished
            live.update(_table(_status(run)))
            if finished:
                break
            time.sleep(1.0)


def _status(folder: Path) -> dict[str, Any]:
    """Return what the server last wrote of its devices, and how far the run is."""
    from leanfleet.runs import Run

    path = folder / "fleet.json"
    try:
        status: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{folder}: no record of a real fleet (it has no fleet.json)") from error
    except ValueError as error:
        raise RecordError(f"{path}: damaged: {error}") from error
    events = Run.open(folder).events()
    last = events[-1] if events else {}
    status["seconds_ago"] = round(max(0.0, time.time() - path.stat().st_mtime), 1)
    return {**status, "accuracy": last.get("accuracy"), "rounds_done": last.get("round", 0)}


def _table(status: dict[str, Any]) -> Table:
    accuracy = status["accuracy"]
    told = "" if accuracy is None else f", accuracy {accuracy:.1%}"
    ago = status["seconds_ago"]
    heard = f", last news {ago:.0f} s ago" if ago > _OLD_SECONDS else ""
    title = f"round {status['round']}, {status['rounds_done']} done{told}{heard}"
    rows = [
        _cells(device, found) for device, found in sorted(status["devices"].items(), key=lambda d: int(d[0]))
    ]
    return simple_table(title, _COLUMNS, rows)


def _cells(device: str, found: dict[str, Any]) -> tuple[str, ...]:
    share, macs = found.get("share"), found.get("macs")
    return (
        device,
        found["state"],
        f"{found['rate_macs_per_s']:.3g}",
        "".join(_BARS[math.ceil((1 - rate) * len(_BARS)) - 1] for rate in found.get("rates") or ()) or "-",
        "-" if share is None else f"{share:.0%}",
        "-" if macs is None else f"{macs:.3g}",
        *(f"{found[key]:,}" if key in found else "-" for key in ("bytes_up", "bytes_down")),
    )
