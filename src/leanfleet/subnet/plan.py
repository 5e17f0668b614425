"""`SubnetPlan`: one network, and every narrower network inside it that a mini-batch may train."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from leanfleet.subnet.build import Traced, build
from leanfleet.subnet.builder import Frame, Term
from leanfleet.subnet.counts import ChannelGroup
from leanfleet.subnet.kept import Kept
from leanfleet.subnet.packing import gather, positions, scatter_
from leanfleet.subnet.units import Ids

Floats = npt.NDArray[np.float64]

# As `ChannelGroup.neighbours` has it.
_NEAR = 1e-6


class SubnetPlan:
    """Who shares channels with whom in a network, and how to run it with only some of them.

    The plan holds no parameters: they are passed in as `{name: tensor}` (`dict(net.named_parameters())`), so
    that one plan serves every copy of the weights. Made by `SubnetPlan.trace`.
    """

    def __init__(self, traced: Traced) -> None:
        self._steps, self._output, self._input = traced.steps, traced.output, traced.input
        self._shape, self._constants = traced.shape, traced.constants
        self._layouts, self._cuts = traced.layouts, traced.cuts
        self.parameters: Mapping[str, torch.Size] = dict(traced.parameters)
        """Shapes of the network's parameters, by name."""
        self.frozen: frozenset[str] = traced.frozen
        """Parameters that the user has frozen (`requires_grad = False`)."""
        self.terms: tuple[Term, ...] = traced.terms
        """The multiply-accumulates, a line per use of a layer."""
        self.groups: tuple[ChannelGroup, ...] = self._layouts.resolved.groups
        """The channel groups, in network order; one dropout rate each."""
        self.normed: frozenset[str] = self._groups_of(traced.normed)
        """Groups with channels that a norm reads: it takes out whatever they are scaled by."""
        self.spanning: tuple[str, ...] = traced.spanning
        """Norms whose statistics span channels that may be dropped: group and layer norms."""
        self._coefficients = np.array([t.coefficient for t in self.terms])
        self._in = self._count_matrix([t.inputs for t in self.terms])
        self._out = self._count_matrix([t.outputs for t in self.terms])
        self._channels = np.array([g.channels for g in self.groups], dtype=np.float64)
        self._grids = _padded([g.grid for g in self.groups])
        self.full = self.keep({g.name: torch.arange(g.channels) for g in self.groups})
        """Every channel kept."""
        self.fingerprint = self._fingerprint()
        """A hash of the structure, the same for any number of classes."""

    @classmethod
    def trace(cls, net: nn.Module, example: Tensor, keep: Iterable[str] = ()) -> SubnetPlan:
        """Trace a network (Rapp et al. 2022 give convolutions; the general rules are our decision).

        Args:
            net: Any network that torch.fx traces, with one tensor in and one tensor out. It is copied, and
                traced in the mode, training or evaluation, that it is in.
            example: [N, ...] an input; only its shape and type matter, beyond the batch dimension.
            keep: Layers (modules or parameters) whose output channels are never dropped; a module stands for
                all layers inside it.

        Raises:
            TraceError: torch.fx cannot trace the network, or a node cannot be cut; the message names it.
        """
        return cls(build(net, example, keep))

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
        return self.draw_counts(self.round_counts(rates, generator, bernoulli=bernoulli), generator)

    def round_counts(
        self, rates: Sequence[float], generator: torch.Generator, *, bernoulli: bool = False
    ) -> list[int]:
        """Draw how many channels of every group are kept, [groups], with the arguments of `draw`."""
        self._check_rates(rates)
        pairs = zip(self.groups, rates, strict=True)
        return [group.draw_count(rate, generator, bernoulli=bernoulli) for group, rate in pairs]

    def draw_counts(self, counts: Sequence[int], generator: torch.Generator) -> Kept:
        """Draw kept sets of exactly these sizes, [groups] of int."""
        pairs = zip(self.groups, counts, strict=True)
        return Kept({g.name: g.draw_set(n, generator) for g, n in pairs}, self._layouts)

    def windows(self, counts: Sequence[int], start: int = 0) -> Kept:
        """Return neighbouring channels of every group, in every cell alike, from `start` on and wrapped around.

        Args:
            counts: [groups] how many channels.
            start: Of the first channel; 0 gives prefixes.
        """
        return self.keep({g.name: g.window(n, start) for g, n in zip(self.groups, counts, strict=True)})

    def keep(self, sets: Mapping[str, Tensor], within: Mapping[str, Tensor] | None = None) -> Kept:
        """Return the kept sets with these channels, checked.

        Args:
            sets: Ascending channels, by group.
            within: The channels that stand for all, C, in the scale C/n; None is the whole network.

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
        return Kept({g.name: sets[g.name] for g in self.groups}, self._layouts, within)

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
        return {name: positions(self._cuts.get(name), kept, shape) for name, shape in self.parameters.items()}

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
                statistics, as later code of the same authors does.
            scale: Multiply what a layer reads by C/n of its source, inside the graph.

        Returns:
            The network's output, [N, classes] for a classifier.

        Raises:
            ValueError: The input has another shape than the traced example, beyond the batch dimension.
        """
        if x.shape[1:] != self._shape:
            raise ValueError(
                f"the plan was made for inputs of shape {tuple(self._shape)}, not {tuple(x.shape[1:])}"
            )
        constants = {name: tensor.to(x.device) for name, tensor in self._constants.items()}
        frame = Frame(leaves, constants, kept, training, scale, {self._input: x})
        for step in self._steps:
            frame.values[step.name] = step.run(frame)
            for name in step.frees:
                del frame.values[name]
        out: Tensor = frame.values[self._output]
        return out

    # -- counting ------------------------------------------------------------------------------------------

    def macs(self, rates: Sequence[float], *, bernoulli: bool = False) -> float:
        """Return the expected forward MACs per sample at these rates (Rapp et al. 2022, MACs(d)).

        Layers are independent, so E[m n] = E[m] E[n]; where a layer reads and writes one group the variance of
        its count is added.
        """
        counts, spread = self._moments(rates, bernoulli=bernoulli)
        product = (self._in @ counts) * (self._out @ counts) + (self._in * self._out) @ spread
        return float(self._coefficients @ product)

    def macs_of_vectors(self, rates: Floats) -> Floats:
        """Return `macs` of many dropout vectors at once, float64 [n] of [n, groups]; nothing is checked."""
        target = np.clip((1.0 - rates) * self._channels, self._grids[:, 0], self._channels)
        whole = np.round(target)
        target = np.where(np.abs(target - whole) < _NEAR, whole, target)[..., None]
        low = np.where(self._grids <= target, self._grids, 0.0).max(axis=-1)
        high = np.where(self._grids >= target, self._grids, np.inf).min(axis=-1)
        means = np.pad(target[..., 0], ((0, 0), (0, 1)), constant_values=1.0)
        spread = np.pad((means[:, :-1] - low) * (high - means[:, :-1]), ((0, 0), (0, 1)))
        product = (means @ self._in.T) * (means @ self._out.T) + spread @ (self._in * self._out).T
        found: Floats = product @ self._coefficients
        return found

    def counts(self, rates: Sequence[float]) -> tuple[Floats, Floats]:
        """Return the expected numbers of kept inputs and outputs of every line of `terms`, float64 [terms] each."""
        counts, _ = self._moments(rates)
        return self._in @ counts, self._out @ counts

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

    def _groups_of(self, units: Ids) -> frozenset[str]:
        resolved = self._layouts.resolved
        slots = resolved.slots(units)
        owners = np.searchsorted(resolved.offsets, slots[slots < resolved.total], side="right") - 1
        return frozenset(self.groups[owner].name for owner in owners.tolist())

    def _moments(self, rates: Sequence[float], *, bernoulli: bool = False) -> Floats:
        """Return mean and variance of every group's kept count, [2, groups + 1]; last, of what is never dropped."""
        self._check_rates(rates)
        pairs = zip(self.groups, rates, strict=True)
        moments: Floats = np.array([*(g.moments(r, bernoulli=bernoulli) for g, r in pairs), (1.0, 0.0)]).T
        return moments

    def _count_matrix(self, layouts: list[int | None]) -> Floats:
        none = np.eye(1, len(self.groups) + 1, len(self.groups))[0]
        rows = [none if n is None else self._layouts.counts_by_group(n) for n in layouts]
        return np.array(rows).reshape(len(rows), len(self.groups) + 1)

    def _check_rates(self, rates: Sequence[float]) -> None:
        if len(rates) != len(self.groups):
            raise ValueError(f"{len(rates)} rates for {len(self.groups)} channel groups")
        if not all(0.0 <= rate < 1.0 for rate in rates):
            raise ValueError(f"dropout rates lie in [0, 1), not {[r for r in rates if not 0.0 <= r < 1.0]}")

    def _fingerprint(self) -> str:
        last = self.terms[-1].layer if self.terms else self._output
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


def _padded(grids: Sequence[Sequence[int]]) -> Floats:
    """Return counts [groups, longest]; what a shorter grid lacks is infinite."""
    found = np.full((len(grids), max(map(len, grids), default=1)), np.inf)
    for row, counts in zip(found, grids, strict=True):
        row[: len(counts)] = counts
    return found


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
