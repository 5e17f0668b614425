"""`leanfleet graph` shows who sends to whom in a gossip fleet, and how fast it would agree."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanfleet.cli.options import Json
from leanfleet.console import busy, print_json, print_tables, simple_table
from leanfleet.errors import UserError

if TYPE_CHECKING:
    from leanfleet.fleet import Graph

_TOLERANCE = 1e-3
_LIMIT_STEPS = 10_000
# From here on Sparse-Push's final phase should take another graph (our decision).
_MANY_ROUNDS = 500
_DEGREE_LINES = 20

Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="ring, undirected-ring, exponential, dynamic-ring, torus(2x4), random(0.3) or random(3), complete, "
        "file:PATH, or several in turn: 'ring, random(3)'.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="STEPS",
        help="Links of so many steps must together reach everybody.",
        show_default="the period",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE.png", help="File of the drawing.")]


def graph(
    spec: Spec,
    nodes: Annotated[int, typer.Option(min=2, help="Number of nodes.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Everything random is drawn from it.")] = 0,
    window: Window = None,
    output: Output = Path("graph.png"),
    as_json: Json = False,
) -> None:
    """Show a gossip graph: degrees, spectral gap, rounds to consensus, and a drawing of its links."""
    from leanfleet.fleet import build_graph, check_connected
    from leanfleet.report import can_draw
    from leanfleet.report.graph import draw_graph

    if output.is_dir() or output.suffix != ".png":
        raise UserError(f"-o {output}: should be a file such as net.png")
    with busy(f"looking at {spec}"):
        found = build_graph(spec, nodes, seed)
        check_connected(found, window)
        facts = measure(found, seed)
    if not as_json:
        # Before the drawing: a folder that cannot be written to is no reason to keep the numbers back.
        _print(found, facts)
    drawing = draw_graph(found, output) if can_draw() else None
    if as_json:
        print_json({**facts, "plot": drawing and str(drawing)})
    elif drawing is not None:
        print(f"plot: {drawing}")
    else:
        print("no plot: it needs matplotlib; pip install 'leanfleet[plots]'")


def measure(graph: Graph, seed: int) -> dict[str, Any]:
    """Return what the command prints of a graph, degrees by phase and node."""
    from leanfleet.fleet import consensus, final_rounds, second_eigenvalue, shortest_window

    steps = range(0, graph.period, graph.hold_steps)
    second = second_eigenvalue(graph)
    return {
        "graph": graph.name,
        "nodes": graph.nodes,
        "seed": seed,
        "period": graph.period,
        "shortest_window": shortest_window(graph),
        "links": [sum(map(len, phase)) for phase in graph.phases],
        "second_eigenvalue": second,
        "spectral_gap": 1 - second,
        "tolerance": _TOLERANCE,
        "limit_steps": _LIMIT_STEPS,
        # A graph may be so slow that 1 is the nearest number.
        "final_rounds": final_rounds(graph, _TOLERANCE) if second < 1 else None,
        "consensus": dataclasses.asdict(consensus(graph, _TOLERANCE, seed, _LIMIT_STEPS)),
        "doubly_stochastic": graph.doubly_stochastic,
        "out_degrees": [[len(graph.out_neighbours(s, n)) for n in range(graph.nodes)] for s in steps],
        "in_degrees": [[len(graph.in_neighbours(s, n)) for n in range(graph.nodes)] for s in steps],
    }


def _print(graph: Graph, facts: dict[str, Any]) -> None:
    print_tables([
        simple_table(None, ("what", "value"), _rows(facts)),
        simple_table("degrees", ("nodes", "sends to", "hears from"), _degrees(facts)),
    ])  # fmt: skip
    rounds = facts["consensus"]["steps"]
    if rounds is None or rounds > _MANY_ROUNDS:
        told = f"more than {facts['limit_steps']:,}" if rounds is None else f"{rounds:,}"
        print(f"{told} rounds are many: take another graph for a dense final phase, such as exponential")


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    found, period = facts["consensus"], facts["period"]
    rounds = f"more than {facts['limit_steps']:,}" if found["steps"] is None else f"{found['steps']:,}"
    one, factor = facts["shortest_window"] == 1, f"{1 / facts['tolerance']:,.0f}"
    weights = (
        "1 at all nodes"
        if facts["doubly_stochastic"]
        else f"{found['weight_low']:.3g} to {found['weight_high']:.3g}"
    )
    return [
        ("graph", facts["graph"]),
        ("nodes", f"{facts['nodes']:,}"),
        ("period", "1 step (static)" if period == 1 else f"{period:,} steps"),
        ("links per step", _span(facts["links"])),
        ("strongly connected within", "1 step" if one else f"{facts['shortest_window']:,} steps"),
        ("spectral gap per step", f"{facts['spectral_gap']:.6f}"),
        (f"rounds to consensus (1/{factor}), measured", rounds),
        (
            "the same by the spectral gap",
            "-" if facts["final_rounds"] is None else f"{facts['final_rounds']:,}",
        ),
        ("push-sum weights", weights),
    ]


def _degrees(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return a line for all nodes with the same degrees over the phases; for fewer lines, with the same out-degree."""
    from leanfleet.fleet.graphs import listed

    out, heard = (
        [(min(of), max(of)) for of in zip(*facts[key], strict=True)] for key in ("out_degrees", "in_degrees")
    )
    keys: Iterable[Any]
    for keys in (zip(out, heard, strict=True), out, [None] * facts["nodes"]):
        alike: dict[Any, list[int]] = defaultdict(list)
        for node, key in enumerate(keys):
            alike[key].append(node)
        if len(alike) <= _DEGREE_LINES:
            break
    return [
        (
            "all" if len(alike) == 1 else listed(nodes),
            _joined([out[n] for n in nodes]),
            _joined([heard[n] for n in nodes]),
        )
        for _, nodes in sorted(alike.items(), reverse=True)
    ]


def _joined(ranges: Sequence[tuple[int, int]]) -> str:
    return _span([end for ends in ranges for end in ends])


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
