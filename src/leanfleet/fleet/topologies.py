"""The graphs that can be named in a word, such as `ring` or `torus(2x4)`, and those that a file lists."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from leanfleet.errors import DataError, ExperimentError, did_you_mean
from leanfleet.fleet.graphs import Graph, sequence
from leanfleet.randomness import numpy_generator

Edges = list[tuple[int, int]]
Argument = tuple[float, ...]

_FILE = "file:PATH"
_COLUMNS = ("step", "from", "to")
_MAX_PERIOD = 100_000
# Sparse-Push's author code lists these for 4 and 8 agents: rings in other orders, which follow i + 1 and i - 1.
_MAPS = {
    4: ((2, 3, 1, 0),),
    8: (
        (2, 5, 4, 6, 7, 3, 0, 1),
        (6, 7, 0, 5, 2, 1, 3, 4),
        (3, 4, 7, 1, 6, 0, 2, 5),
        (5, 3, 6, 0, 1, 7, 4, 2),
    ),
}
_OTHER_RINGS = 2


@dataclass(frozen=True)
class Topology:
    """A graph as it was named, for any number of nodes.

    Attributes:
        name: What stands before the brackets.
        argument: The numbers in brackets, or what is taken without them.
        path: The file, if it is one.
    """

    name: str
    argument: Argument = ()
    path: Path | None = None


def parse_graph(spec: str) -> tuple[Topology, ...]:
    """Return what a graph is made of: one topology, or several that follow one another.

    Raises:
        ExperimentError: A name is unknown, or an argument is missing, not wanted or out of range.
    """
    if re.match(r"\s*file\b", spec):
        return (_parse_file(spec),)
    return tuple(_parse(part.strip(), spec) for part in spec.split(","))


def build_graph(spec: str, nodes: int, seed: int = 0) -> Graph:
    """Return the graph of a specification, such as `exponential`.

    Graphs and weights are those of Sparse-Push's author code (Aketi et al. 2021) and of SGP (Assran et al. 2019):

    | spec | whom node i sends to |
    |---|---|
    | `ring` | i + 1 |
    | `undirected-ring` | i + 1 and i - 1 |
    | `exponential`, `exponential(p)` | i + j (p + 1)^m for j = 1 to p peers (1 if not said); m goes up by one a step as long as (p + 1)^m < n |
    | `dynamic-ring` | i + 1, then i - 1, then along rings in other orders; those of the author code for 4 and 8 nodes, else two random ones, each forth and back (our decision) |
    | `torus(2x4)` | its four neighbours on a grid of 2 rows and 4 columns that is closed on both sides |
    | `random(0.3)` | i + 1, and every other node with this probability |
    | `random(3)` | i + 1, and random ones, so that nodes send to 3 on average: out- and in-degrees differ |
    | `complete` | all |
    | `file:PATH`, `file(20):PATH` | as a file says, see `load_links`; here with a period of 20 steps |
    | `ring, random(3), random(3)` | one graph after the other, again and again |

    Args:
        spec: One of the above.
        nodes: How many nodes there are, n >= 2.
        seed: What is random is drawn from it, and for each place in a sequence anew.

    Raises:
        ExperimentError: The specification is malformed, or does not fit the number of nodes.
        DataError: The file cannot be read.
    """  # noqa: E501 (a table row cannot be broken)
    topologies = parse_graph(spec)
    name = spec.strip()
    if nodes < 2:
        raise ExperimentError(f"graph '{name}' needs at least 2 nodes, not {nodes}")
    graphs = [_build(name, topology, nodes, seed, place) for place, topology in enumerate(topologies)]
    return graphs[0] if len(graphs) == 1 else sequence(name, graphs)


def load_links(path: Path, nodes: int, period: int | None = None) -> Graph:
    """Read a CSV file with the columns `step`, `from` and `to` (others are ignored): a line a link, in any order.

    Steps and nodes are numbered from 0; a link is there at its step only, and again a period later.

    Args:
        path: The file.
        nodes: How many nodes there are.
        period: In steps; one more than the last step of the file if None.

    Raises:
        DataError: The file cannot be read; names the file and the line.
    """
    lines: dict[tuple[int, int, int], int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(path, reader.fieldnames or ())
            for row in reader:
                _append(
                    lines, _link(row, nodes, period, f"{path}, line {reader.line_num}"), reader.line_num, path
                )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV file of links: {error}") from error
    if not lines:
        raise DataError(f"{path}: holds no links; give a line '0,1,2' for a link from 1 to 2 at step 0")
    phases: list[Edges] = [[] for _ in range(period or max(step for step, _, _ in lines) + 1)]
    for step, sender, receiver in lines:
        phases[step].append((sender, receiver))
    return Graph.from_edges(f"file:{path}", nodes, phases)


def _parse(part: str, spec: str) -> Topology:
    where = f"graph '{spec.strip()}'"
    match = re.fullmatch(r"([\w-]+)\s*(?:\(([^()]*)\))?", part)
    name, text = match.groups() if match else (part, None)
    if name not in _KINDS:
        inside = "" if part == spec.strip() else f": '{part}'"
        raise ExperimentError(f"{where}{inside} is unknown{did_you_mean(name, {*_KINDS, _FILE})}")
    kind = _KINDS[name]
    if kind.pattern is None and text is not None:
        raise ExperimentError(f"{where}: {name} takes no argument; write '{name}'")
    if kind.pattern is None or (text is None and kind.default):
        return Topology(name, kind.default)
    found = re.fullmatch(kind.pattern, text.strip()) if text is not None else None
    argument = tuple(float(number) for number in found.groups()) if found else ()
    if not argument or not kind.valid(argument):
        raise ExperimentError(f"{where} cannot be read; write for example {kind.example}")
    return Topology(name, argument)


def _parse_file(spec: str) -> Topology:
    match = re.fullmatch(r"\s*file\s*(?:\(\s*(\d+)\s*\))?\s*:\s*(.+?)\s*", spec)
    if match is None or (match[1] and not 1 <= int(match[1]) <= _MAX_PERIOD):
        raise ExperimentError(
            f"graph '{spec.strip()}' cannot be read; write {_FILE}, or file(20):PATH for a period of 20 steps "
            f"({_MAX_PERIOD:,} at most)"
        )
    return Topology("file", (float(match[1]),) if match[1] else (), Path(match[2]))


def _build(name: str, topology: Topology, nodes: int, seed: int, place: int) -> Graph:
    if topology.path is not None:
        return load_links(topology.path, nodes, int(topology.argument[0]) if topology.argument else None)
    kind = _KINDS[topology.name]
    if fault := kind.fault(topology.argument, nodes):
        raise ExperimentError(f"graph '{name}' {fault}, not {nodes}")
    phases = kind.build(nodes, topology.argument, numpy_generator(seed, "graph", place))
    return Graph.from_edges(name, nodes, phases)


def _ring(nodes: int, argument: Argument, stream: np.random.Generator) -> list[Edges]:
    return [_shifted(nodes, 1)]


def _undirected_ring(nodes: int, argument: Argument, stream: np.random.Generator) -> list[Edges]:
    return [_shifted(nodes, 1, -1)]


def _exponential(nodes: int, argument: Argument, stream: np.random.Generator) -> list[Edges]:
    peers, power, phases = int(argument[0]), 1, []
    while power < nodes:
        phases.append(_shifted(nodes, *(peer * power for peer in range(1, peers + 1))))
        power *= peers + 1
    return phases


def _dynamic_ring(nodes: int, argument: Argument, stream: np.random.Generator) -> list[Edges]:
    if nodes in _MAPS:
        others = [list(enumerate(receivers)) for receivers in _MAPS[nodes]]
    else:
        forth = [_closed(stream.permutation(nodes).tolist()) for _ in range(_OTHER_RINGS)]
        others = [
            turn for ring in forth for turn in (ring, [(receiver, sender) for sender, receiver in ring])
        ]
    return [_shifted(nodes, 1), _shifted(nodes, -1), *others]


def _torus(nodes: int, argument: Argument, stream: np.random.Generator) -> list[Edges]:
    import networkx as nx

    rows, columns = map(int, argument)
    grid = nx.grid_2d_graph(rows, columns, periodic=True).to_directed()
    return [[(a * columns + b, c * columns + d) for (a, b), (c, d) in grid.edges]]


def _random(nodes: int, argument: Argument, stream: np.random.Generator) -> list[Edges]:
    # Of each node all others but the next one; numbered, so that large fleets need no matrix.
    places = nodes * (nodes - 2)
    wanted = argument[0]
    count = round((wanted - 1) * nodes) if wanted >= 1 else stream.binomial(places, wanted)
    chosen = stream.choice(places, size=count, replace=False) if count else np.empty(0, dtype=np.int64)
    senders, offsets = np.divmod(chosen, max(1, nodes - 2))
    receivers = (senders + offsets + 2) % nodes
    return [[*_shifted(nodes, 1), *zip(senders.tolist(), receivers.tolist(), strict=True)]]


def _complete(nodes: int, argument: Argument, stream: np.random.Generator) -> list[Edges]:
    return [_shifted(nodes, *range(1, nodes))]


def _shifted(nodes: int, *distances: int) -> Edges:
    # A whole way round comes back to the node itself, which is no link.
    return [(i, (i + d) % nodes) for i in range(nodes) for d in distances if d % nodes]


def _closed(order: Sequence[int]) -> Edges:
    return list(pairwise([*order, order[0]]))


@dataclass(frozen=True)
class _Kind:
    """A word: its links, what may stand in the brackets and stands there by default, and which sizes it fits."""

    build: Callable[[int, Argument, np.random.Generator], list[Edges]]
    pattern: str | None = None
    example: str = ""
    default: Argument = ()
    valid: Callable[[Argument], bool] = bool
    fault: Callable[[Argument, int], str | None] = lambda argument, nodes: None


_KINDS = {
    "ring": _Kind(_ring),
    "undirected-ring": _Kind(_undirected_ring),
    "exponential": _Kind(
        _exponential,
        r"(\d+)",
        "exponential(2), peers per step from 1",
        (1.0,),
        lambda found: found[0] >= 1,
        lambda found, nodes: f"needs more than {found[0]:g} nodes" if found[0] >= nodes else None,
    ),
    "dynamic-ring": _Kind(_dynamic_ring),
    "torus": _Kind(
        _torus,
        r"(\d+)\s*x\s*(\d+)",
        "torus(2x4), rows and columns from 2",
        (),
        lambda found: min(found) >= 2,
        lambda found, nodes: (
            f"is for {found[0] * found[1]:g} nodes" if found[0] * found[1] != nodes else None
        ),
    ),
    "random": _Kind(
        _random,
        r"(\d*\.?\d+)",
        "random(0.3), the probability of a link, or random(3), to how many a node sends on average",
        (),
        lambda found: found[0] > 0,
        lambda found, nodes: f"needs more than {found[0]:g} nodes" if found[0] > nodes - 1 else None,
    ),
    "complete": _Kind(_complete),
}


def _check_columns(path: Path, columns: Iterable[str]) -> None:
    for column in _COLUMNS:
        if column not in columns:
            raise DataError(
                f"{path}, line 1: no column '{column}'; the first line must be '{','.join(_COLUMNS)}'"
            )


def _link(row: dict[str, str | None], nodes: int, period: int | None, where: str) -> tuple[int, int, int]:
    """Check one line of a file of links."""
    texts = [(row[column] or "").strip() for column in _COLUMNS]
    if not all(re.fullmatch(r"\d{1,9}", text) for text in texts):
        raise DataError(
            f"{where}: 'step', 'from' and 'to' must be whole numbers from 0, not {', '.join(texts)}"
        )
    step, sender, receiver = map(int, texts)
    if step >= (period or _MAX_PERIOD):
        what = "the period" if period else "the most there may be"
        raise DataError(
            f"{where}: step {step} is not below {period or _MAX_PERIOD}, {what}; number steps from 0"
        )
    if max(sender, receiver) >= nodes:
        raise DataError(f"{where}: no node {max(sender, receiver)}; nodes are 0 to {nodes - 1}")
    if sender == receiver:
        raise DataError(f"{where}: node {sender} sends to itself; what it keeps is no link, leave it out")
    return step, sender, receiver


def _append(
    lines: dict[tuple[int, int, int], int], link: tuple[int, int, int], line: int, path: Path
) -> None:
    if link in lines:
        raise DataError(f"{path}, line {line}: the same link as in line {lines[link]}; leave it out")
    lines[link] = line
