"""`SubnetPlan`: one network, and every narrower network inside it that a mini-batch may train."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from leanfleet.errors import TraceError
from leanfleet.subnet.counts import ChannelGroup
from leanfleet.subnet.kept import Kept, Layouts
from leanfleet.subnet.layers import MODULES, get_parameter
from leanfleet.subnet.ops import Handler, opaque
from leanfleet.subnet.packing import gather, positions, scatter_
from leanfleet.subnet.table import FUNCTIONS, PLAIN_MODULES, check_sizes
from leanfleet.subnet.trace import Builder, Cut, Frame, Run, Term, check_keep, propagate, symbolic_trace


@dataclass(frozen=True)
class _Step:
    name: str
    run: Run
    frees: tuple[str, ...]


class SubnetPlan:
    """Who shares channels with whom in a network, and how to run it with only some of them.

    The plan holds no parameters: they are passed in as `{name: tensor}` (`dict(net.named_parameters())`), so
    that one plan serves every copy of the weights. Made by `SubnetPlan.trace`.
    """

    def __init__(self, builder: Builder, steps: list[_Step], output: Any, inputs: list[str]) -> None:
        self._layouts = Layouts(builder.numbered, builder.units.resolve())
        self._cuts: dict[str, Cut] = builder.cuts()
        self._steps, self._output, self._inputs = steps, output, inputs
        self._buffers = dict(builder.root.named_buffers())
        self._shapes = {name: p.shape for name, p in builder.root.named_parameters()}
        self.aliases = builder.aliases
        """Every parameter name to the name under which a shared parameter is held."""
        self.terms: tuple[Term, ...] = tuple(builder.terms)
        """The multiply-accumulates, a line per use of a layer."""
        self.groups: tuple[ChannelGroup, ...] = self._layouts.resolved.groups
        """The channel groups, in network order; one dropout rate each."""
        self._coefficients = np.array([t.coefficient for t in self.terms])
        self._in = self._count_matrix([t.inputs for t in self.terms])
        self._out = self._count_matrix([t.outputs for t in self.terms])
        self.full = self.keep({g.name: torch.arange(g.channels) for g in self.groups})
        """Every channel kept."""
        self.fingerprint = self._fingerprint()
        """A hash of the structure, the same for any number of classes."""

    @classmethod
    def trace(cls, net: nn.Module, example: Tensor, keep: Iterable[str] = ()) -> SubnetPlan:
        """Trace a network (Rapp et al. 2022 give convolutions; the general rules are our decision).

        Args:
            net: Any network that torch.fx traces, with one tensor in and one tensor out.
            example: [N, ...] an input; only its shape matters, beyond the batch dimension.
            keep: Modules whose output channels are never dropped (with all modules inside them).

        Raises:
            TraceError: torch.fx cannot trace the network, or a node cannot be cut; the message names it.
        """
        exempt = check_keep(net, keep)
        graph = symbolic_trace(net)
        # A copy, so that what the caller does to the network later cannot change the plan.
        root = copy.deepcopy(net)
        shapes, macs = propagate(root, graph, example)
        builder = Builder(root, graph, shapes, macs, exempt)
        builder.aliases.update(_aliases(root))
        return _build(cls, builder)

    # -- choosing ------------------------------------------------------------------------------------------

    def uniform(self, rate: float) -> tuple[float, ...]:
        """Return the dropout vector with one rate for all groups."""
        return (rate,) * len(self.groups)

    def draw(self, rates: Sequence[float], generator: torch.Generator, *, bernoulli: bool = False) -> Kept:
        """Draw kept sets at the given dropout rates, independently for every group.

        Args:
            rates: [groups] dropout rates in [0, 1).
            generator: The mask stream.
            bernoulli: Draw every filter by itself (the paper's reading) instead of fixed aligned counts.

        Raises:
            ValueError: The vector has the wrong length or a rate lies outside [0, 1).
        """
        self._check_rates(rates)
        counts = [
            g.draw_count(r, generator, bernoulli=bernoulli) for g, r in zip(self.groups, rates, strict=True)
        ]
        return self.draw_counts(counts, generator)

    def draw_counts(self, counts: Sequence[int], generator: torch.Generator) -> Kept:
        """Draw kept sets of exactly these sizes, [groups] of int."""
        pairs = zip(self.groups, counts, strict=True)
        return Kept({g.name: g.draw_set(n, generator) for g, n in pairs}, self._layouts)

    def keep(self, sets: Mapping[str, Tensor]) -> Kept:
        """Return the kept sets with these channels, checked.

        Raises:
            ValueError: A group is missing or unknown, a set is empty, unsorted, out of range, or does not fill
                its group's cells equally.
        """
        if set(sets) != {g.name for g in self.groups}:
            raise ValueError(
                f"kept sets are for {sorted(sets)}, the groups are {[g.name for g in self.groups]}"
            )
        for group in self.groups:
            _check_set(group, sets[group.name])
        return Kept({g.name: sets[g.name] for g in self.groups}, self._layouts)

    # -- running -------------------------------------------------------------------------------------------

    def pack(self, tensors: Mapping[str, Tensor], kept: Kept) -> dict[str, Tensor]:
        """Gather the kept part of parameters (or of optimiser state of the same names and shapes).

        Returns:
            Small dense tensors without history, not scaled. What is kept whole is not copied: the result shares
            its memory.
        """
        return {name: gather(t.detach(), self._cuts.get(name), kept) for name, t in tensors.items()}

    def unpack_(self, tensors: Mapping[str, Tensor], leaves: Mapping[str, Tensor], kept: Kept) -> None:
        """Write packed values back in place; all other entries stay bit for bit."""
        with torch.no_grad():
            for name, leaf in leaves.items():
                scatter_(tensors[name], leaf.detach(), self._cuts.get(name), kept)

    def positions(self, kept: Kept) -> dict[str, tuple[Tensor | None, ...]]:
        """Return where the kept part of every parameter lies, as `averaging.HolderSum.add` takes it."""
        return {name: positions(self._cuts.get(name), kept, shape) for name, shape in self._shapes.items()}

    def run(
        self,
        leaves: Mapping[str, Tensor],
        kept: Kept,
        x: Tensor,
        *,
        training: bool = True,
        scale: bool = True,
    ) -> Tensor:
        """Run the network narrow.

        Args:
            leaves: Packed parameters, from `pack`.
            kept: The kept sets they were packed with.
            x: [N, ...] input.
            training: Whether activation dropout of the network's own is on. Batch norm always uses batch
                statistics (section 4.4 of our specification; later code of the same authors).
            scale: Multiply what a layer reads by C/n of its source, inside the graph.

        Returns:
            The network's output, [N, classes] for a classifier.
        """
        frame = Frame(leaves, self._buffers, kept, training, scale, dict.fromkeys(self._inputs, x))
        for step in self._steps:
            frame.values[step.name] = step.run(frame)
            for name in step.frees:
                del frame.values[name]
        out: Tensor = frame.fill(self._output)
        return out

    # -- counting ------------------------------------------------------------------------------------------

    def macs(self, rates: Sequence[float], *, bernoulli: bool = False) -> float:
        """Return the expected forward MACs per sample at these rates (Rapp et al. 2022, MACs(d)).

        Layers are independent, so E[m n] = E[m] E[n]; where a layer reads and writes one group the variance of
        its count is added.
        """
        self._check_rates(rates)
        pairs = list(zip(self.groups, rates, strict=True))
        counts = np.array([*(g.neighbours(r)[0] for g, r in pairs), 1.0])
        spread = np.array([*(g.variance(r, bernoulli=bernoulli) for g, r in pairs), 0.0])
        product = (self._in @ counts) * (self._out @ counts) + (self._in * self._out) @ spread
        return float(self._coefficients @ product)

    def macs_of(self, kept: Kept) -> int:
        """Return the exact forward MACs per sample with these kept sets."""
        counts = np.array([*(len(kept[g.name]) for g in self.groups), 1.0])
        return round(float(self._coefficients @ ((self._in @ counts) * (self._out @ counts))))

    def uniform_rate(self, macs: float, highest: float = 1.0) -> float:
        """Return the one rate for all groups, at most `highest`, at which the expected MACs are `macs`."""
        low, high = 0.0, min(highest, 1.0 - 1e-9)
        if macs >= self.macs(self.uniform(low)):
            return low
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.macs(self.uniform(middle)) > macs else (low, middle)
        return high

    def term_macs(self, term: Term) -> int:
        """Return the whole network's MACs of one line of `terms`."""
        sizes = [1 if n is None else len(self._layouts.slots[n]) for n in (term.inputs, term.outputs)]
        return round(term.coefficient * sizes[0] * sizes[1])

    # -- inside --------------------------------------------------------------------------------------------

    def _count_matrix(self, layouts: list[int | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
        none = np.eye(1, len(self.groups) + 1, len(self.groups))[0]
        rows = [none if n is None else self._layouts.counts_by_group(n) for n in layouts]
        return np.array(rows).reshape(len(rows), len(self.groups) + 1)

    def _check_rates(self, rates: Sequence[float]) -> None:
        if len(rates) != len(self.groups):
            raise ValueError(f"{len(rates)} rates for {len(self.groups)} channel groups")
        if not all(0.0 <= rate < 1.0 for rate in rates):
            raise ValueError(f"dropout rates lie in [0, 1), not {[r for r in rates if not 0.0 <= r < 1.0]}")

    def _fingerprint(self) -> str:
        final = self._output.name if isinstance(self._output, fx.Node) else None
        last = self.terms[-1].layer if self.terms else final
        structure = {
            "groups": [(g.name, g.channels, g.cell_of if g.cells > 1 else None) for g in self.groups],
            "steps": [step.name for step in self._steps],
            # The classifier's width is the data's, not the network's.
            "terms": [
                (t.layer, t.coefficient, i.tolist(), None if t.layer == last else o.tolist())
                for t, i, o in zip(self.terms, self._in, self._out, strict=True)
            ],
        }
        return hashlib.sha256(json.dumps(structure).encode()).hexdigest()[:16]


def _aliases(root: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in root.named_parameters(remove_duplicate=False)}


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _handle(builder: Builder, node: fx.Node) -> Run:
    if node.op == "get_attr":
        return get_parameter(builder, node, _attribute(builder.root, str(node.target)))
    if node.op == "call_module":
        module = builder.root.get_submodule(str(node.target))
        if type(module) in MODULES:
            return MODULES[type(module)](builder, node, module)
        handler: Handler = PLAIN_MODULES.get(type(module), opaque)
    else:
        handler = FUNCTIONS.get(node.target, opaque)
    check_sizes(builder, node, handler)
    return handler(builder, node)


def _build(cls: type[SubnetPlan], builder: Builder) -> SubnetPlan:
    steps: list[tuple[fx.Node, Run]] = []
    output: Any = None
    inputs = [node.name for node in builder.graph.nodes if node.op == "placeholder"]
    for node in builder.graph.nodes:
        if node.op == "output":
            output = node.args[0]
        elif node.op != "placeholder":
            steps.append((node, _handle(builder, node)))
    if not isinstance(output, fx.Node) or len(inputs) != 1:
        raise TraceError(f"{type(builder.root).__name__} must take one tensor and return one tensor")
    layout = builder.layout(output)
    if layout is not None:
        builder.units.fix(layout.units)
    last_use: dict[str, int] = {}
    for at, (node, _) in enumerate(steps):
        last_use.update(dict.fromkeys((n.name for n in node.all_input_nodes), at))
    frees: dict[int, list[str]] = {}
    for name, at in last_use.items():
        if name != output.name:
            frees.setdefault(at, []).append(name)
    done = [_Step(node.name, run, tuple(frees.get(at, ()))) for at, (node, run) in enumerate(steps)]
    return cls(builder, done, output, inputs)


def _check_set(group: ChannelGroup, ids: Tensor) -> None:
    inside = len(ids) > 0 and int(ids.min()) >= 0 and int(ids.max()) < group.channels
    if not inside or bool((ids[1:] <= ids[:-1]).any()):
        raise ValueError(
            f"the kept set of group '{group.name}' is empty, not ascending or not in 0..{group.channels - 1}"
        )
    filled = torch.bincount(torch.tensor(group.cell_of)[ids], minlength=group.cells)
    if bool((filled != filled[0]).any()):
        raise ValueError(
            f"the kept set of group '{group.name}' does not fill its {group.cells} cells equally"
        )
