from __future__ import annotations

import numpy as np
import pytest

from leanfleet.errors import TraceError
from leanfleet.subnet.units import FIXED, Layout, Units


def sizes(units: Units) -> dict[str, int]:
    return {group.name: group.channels for group in units.resolve().groups}


def test_every_writer_is_a_group_in_the_order_of_writing() -> None:
    units = Units()
    units.new(4, "a")
    units.new(3, "b")
    assert list(sizes(units).items()) == [("a", 4), ("b", 3)]


def test_what_is_tied_is_one_group_of_the_first_writer_s_name() -> None:
    units = Units()
    a, b, c = units.new(4, "a"), units.new(4, "b"), units.new(4, "c")
    units.tie(c, b)
    units.tie(b, a)
    (group,) = units.resolve().groups
    assert (group.name, group.channels, group.layers) == ("a", 4, ("a", "b", "c"))


def test_ties_of_a_part_split_the_writer() -> None:
    units = Units()
    a, b = units.new(6, "a"), units.new(2, "b")
    units.tie(a[:2], b)
    assert sizes(units) == {"a": 2, "a#2": 4}


def test_what_is_tied_to_something_fixed_is_never_dropped() -> None:
    units = Units()
    a, b = units.new(4, "a"), units.new(4, "b")
    units.tie(a, b)
    units.tie(b[:2], np.array([FIXED, FIXED]))
    resolved = units.resolve()
    assert [(group.name, group.channels) for group in resolved.groups] == [("a", 2)]
    assert resolved.slots(a).tolist() == resolved.slots(b).tolist() == [2, 2, 0, 1]
    assert resolved.slots(np.array([FIXED])).tolist() == [resolved.total] == [2]


def test_a_bare_parameter_alone_is_never_dropped() -> None:
    units = Units()
    gain, conv = units.new(4, "gain", bare=True), units.new(4, "conv")
    units.new(5, "shift", bare=True)
    units.tie(gain, conv)
    (group,) = units.resolve().groups
    assert (group.name, group.layers) == ("conv", ("conv", "gain"))


def test_a_lone_channel_is_never_dropped() -> None:
    units = Units()
    a = units.new(4, "a")
    units.new(1, "b")
    units.cut([a[:1], a[1:]], "slice")
    assert sizes(units) == {"a": 3}


def test_pieces_have_groups_of_their_own_whatever_is_fixed() -> None:
    units = Units()
    a = units.new(6, "a")
    units.cut([a[:2], np.array([FIXED]), a[2:]], "split")
    assert sizes(units) == {"a": 2, "a#2": 4}


def test_channels_of_a_group_take_as_many_places_each() -> None:
    """Tied to itself in another order a layer falls apart into rings; only rings of one length are a group."""
    units = Units()
    a = units.new(6, "a")
    units.tie(a, a[[0, 1, 3, 2, 5, 4]])
    assert sizes(units) == {"a": 2, "a#2": 2}


def test_demands_are_met_by_what_is_fixed_in_the_end() -> None:
    units = Units()
    a, b = units.new(4, "a"), units.new(4, "b")
    units.demand_fixed(Layout(1, a), "node 'x' needs all")
    units.tie(a, b)
    with pytest.raises(TraceError, match=r"^node 'x' needs all; exempt the layers .*: keep=\['a'\]$"):
        units.resolve()
    units.fix(b)
    assert units.resolve().groups == ()


def test_equal_blocks_become_cells() -> None:
    units = Units()
    a = units.new(12, "a")
    units.equal(a, 3, "node 'x'")
    units.equal(a[np.arange(12).reshape(3, 4).T.reshape(-1)], 2, "node 'y'")
    (group,) = units.resolve().groups
    assert group.cells == 6
    assert group.cell_of == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)


def test_blocks_that_cannot_be_equal_are_refused() -> None:
    units = Units()
    a = units.new(12, "a")
    units.equal(a, 4, "node 'x'")
    units.equal(a, 6, "node 'y'")
    with pytest.raises(TraceError, match=r"node 'x' needs equal counts .* keep=\['a'\]"):
        units.resolve()


def test_blocks_of_different_layers_are_refused() -> None:
    units = Units()
    both = np.concatenate([units.new(4, "a"), units.new(4, "b")])
    units.equal(both, 2, "node 'x'")
    with pytest.raises(TraceError, match=r"node 'x' has groups .* keep=\['a', 'b'\]"):
        units.resolve()


def test_blocks_of_one_channel_leave_nothing_to_drop() -> None:
    units = Units()
    units.equal(units.new(4, "a"), 4, "node 'x'")
    assert units.resolve().groups == ()
