"""Which channels of a network stand or fall together.

While a network is traced, every channel that a layer writes is a *unit* (an integer). A value's layout names,
for each position along its channel dimension, the unit that lives there; a concat joins such lists, a
flatten repeats them, a residual add ties them. At the end the tied units form the channel groups.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from networkx.utils import UnionFind

from leanfleet.errors import TraceError
from leanfleet.subnet.counts import ChannelGroup

Ids = npt.NDArray[np.int64]

FIXED = -1
"""The unit of a channel that is always there: network inputs, paddings, buffers."""


@dataclass(frozen=True)
class Layout:
    """Where a value's channels are.

    Attributes:
        dim: The channel dimension, counted from the front.
        units: int64 [size of that dimension]; the unit at each position, or `FIXED`.
    """

    dim: int
    units: Ids

    @property
    def droppable(self) -> bool:
        """Whether any position may be dropped, as far as is known while tracing."""
        return bool((self.units != FIXED).any())


@dataclass(frozen=True)
class Resolved:
    """The outcome: the groups, and for every unit its slot.

    Attributes:
        groups: In the order in which the network writes them.
        slot_of: int64 [units]; the index of a unit's channel when all groups' channels are laid end to end,
            or `total` for a unit that is never dropped.
        offsets: First slot of every group.
        total: Number of droppable channels.
    """

    groups: tuple[ChannelGroup, ...]
    slot_of: Ids
    offsets: tuple[int, ...]
    total: int

    def slots(self, units: Ids) -> Ids:
        """Return the slots of a layout's units."""
        return np.where(units == FIXED, self.total, self.slot_of[units])


@dataclass
class Units:
    """The units of one network and what is known about them while it is traced."""

    writers: list[str] = field(default_factory=list)
    writer_of: list[int] = field(default_factory=list)
    _bare: set[int] = field(default_factory=set)
    _ties: list[tuple[int, int]] = field(default_factory=list)
    _fixed: set[int] = field(default_factory=set)
    _tags: dict[int, set[Hashable]] = field(default_factory=lambda: defaultdict(set))
    _cells: list[tuple[str, Ids, int]] = field(default_factory=list)
    _demands: list[tuple[str, Ids]] = field(default_factory=list)

    def new(self, count: int, writer: str, *, bare: bool = False) -> Ids:
        """Return `count` new units written by `writer`: a layer, or a bare parameter."""
        start = len(self.writer_of)
        if bare:
            self._bare.add(len(self.writers))
        self.writers.append(writer)
        self.writer_of.extend([len(self.writers) - 1] * count)
        return np.arange(start, start + count)

    def tie(self, a: Ids, b: Ids) -> None:
        """Let the channels at equal positions stand or fall together."""
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            if one == FIXED or other == FIXED:
                self._fixed.update({one, other} - {FIXED})
            elif one != other:
                self._ties.append((one, other))

    def fix(self, units: Ids) -> None:
        """Never drop these channels."""
        self._fixed.update(units[units != FIXED].tolist())

    def cut(self, pieces: Sequence[Ids], tag: Hashable) -> None:
        """Give the pieces of a split a rate each, so that no piece is ever left empty."""
        for index, piece in enumerate(pieces):
            for unit in piece[piece != FIXED].tolist():
                self._tags[unit].add((tag, index))

    def equal(self, units: Ids, blocks: int, node: str) -> None:
        """Keep the same count in each of `blocks` equal stretches of a layout."""
        self._cells.append((node, units, blocks))

    def demand_fixed(self, layout: Layout | None, complaint: str) -> None:
        """Refuse the network at the end if any of these channels may be dropped."""
        if layout is not None and layout.droppable:
            self._demands.append((complaint, layout.units))

    def resolve(self) -> Resolved:
        """Form the groups.

        Raises:
            TraceError: A node cannot be cut; the message names it and the layers to exempt.
        """
        class_of = self._classes()
        members, fixed = self._members(class_of)
        labels = self._cell_labels(class_of, fixed)
        # Where every block has a single channel, and where a group has, nothing can be dropped.
        rigid = [roots for roots in members if len({frozenset(labels[r]) for r in roots}) == len(roots)]
        fixed.update(root for roots in rigid for root in roots)
        members = [roots for roots in members if roots not in rigid]
        self._check_demands(class_of, fixed)
        groups, offsets, slot_of_class = [], [], {}
        names: Counter[str] = Counter()
        total = 0
        for roots in members:
            layers = self._layers(np.flatnonzero(np.isin(class_of, roots)))
            names[layers[0]] += 1
            name = layers[0] if names[layers[0]] == 1 else f"{layers[0]}#{names[layers[0]]}"
            groups.append(self._group(name, roots, layers, labels))
            offsets.append(total)
            slot_of_class.update({root: total + i for i, root in enumerate(roots)})
            total += len(roots)
        slot_of = np.array([slot_of_class.get(root, total) for root in class_of.tolist()], dtype=np.int64)
        resolved = Resolved(tuple(groups), slot_of, tuple(offsets), total)
        self._check_cells(resolved)
        return resolved

    def _classes(self) -> Ids:
        # The smallest unit stands for its class, so that groups come out in the order of the network.
        sets = UnionFind(range(len(self.writer_of)))
        for one, other in self._ties:
            sets.union(one, other)
        class_of = np.zeros(len(self.writer_of), dtype=np.int64)
        for members in sets.to_sets():
            class_of[list(members)] = min(members)
        return class_of

    def _members(self, class_of: Ids) -> tuple[list[list[int]], set[int]]:
        """Return the classes of every group, and the classes that are never dropped."""
        written: dict[int, Counter[Hashable]] = defaultdict(Counter)
        for unit, root in enumerate(class_of.tolist()):
            written[root].update([self.writer_of[unit], *self._tags.get(unit, ())])
        fixed = {int(class_of[unit]) for unit in self._fixed}
        # Dropping what only a bare parameter writes would save nothing.
        fixed |= {
            root for root, by in written.items() if all(w in self._bare for w in by if isinstance(w, int))
        }
        members: dict[Hashable, list[int]] = defaultdict(list)
        for root, by in written.items():
            if root not in fixed:
                # How often each writer counts too: every channel of a group then takes as many positions.
                members[frozenset(by.items())].append(root)
        return list(members.values()), fixed

    def _layers(self, units: Ids) -> tuple[str, ...]:
        """Return what writes these units, layers before bare parameters."""
        writers = dict.fromkeys(self.writer_of[u] for u in units[units != FIXED].tolist())
        return tuple(dict.fromkeys(self.writers[w] for w in sorted(writers, key=lambda w: w in self._bare)))

    def _check_demands(self, class_of: Ids, fixed: set[int]) -> None:
        for complaint, units in self._demands:
            droppable = [u for u in units[units != FIXED].tolist() if int(class_of[u]) not in fixed]
            if droppable:
                layers = list(self._layers(np.array(droppable)))
                raise TraceError(f"{complaint}; exempt the layers that write its channels: keep={layers}")

    def _cell_labels(self, class_of: Ids, fixed: set[int]) -> dict[int, set[tuple[int, int]]]:
        labels: dict[int, set[tuple[int, int]]] = defaultdict(set)
        for index, (_, units, blocks) in enumerate(self._cells):
            size = len(units) // blocks
            for position, unit in enumerate(units.tolist()):
                if unit != FIXED and int(class_of[unit]) not in fixed:
                    labels[int(class_of[unit])].add((index, position // size))
        return labels

    def _group(
        self, name: str, roots: list[int], layers: tuple[str, ...], labels: dict[int, set[tuple[int, int]]]
    ) -> ChannelGroup:
        cells: dict[Hashable, int] = {}
        cell_of = tuple(cells.setdefault(frozenset(labels.get(r, ())), len(cells)) for r in roots)
        if len({cell_of.count(cell) for cell in cells.values()}) > 1:
            node = self._cells[min(i for r in roots for i, _ in labels.get(r, ()))][0]
            raise TraceError(
                f"{node} needs equal counts in blocks that the channels of {list(layers)} do not fill "
                f"evenly; exempt them: keep={list(layers)}"
            )
        return ChannelGroup(name, len(roots), layers, cell_of)

    def _check_cells(self, resolved: Resolved) -> None:
        bounds = np.array([*resolved.offsets, resolved.total])
        for node, units, blocks in self._cells:
            slots = resolved.slots(units).reshape(blocks, -1)
            counts = [
                np.bincount(np.searchsorted(bounds, row, side="right"), minlength=len(bounds) + 1)
                for row in slots
            ]
            if any((row != counts[0]).any() for row in counts):
                raise TraceError(
                    f"{node} has groups of channels that mix layers unevenly; exempt them: "
                    f"keep={list(self._layers(units))}"
                )
