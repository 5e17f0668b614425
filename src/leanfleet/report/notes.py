"""What a reader must know beside the numbers of runs."""

from __future__ import annotations

from collections.abc import Sequence

from leanfleet.experiment import METHODS
from leanfleet.report.records import Group, Record

_TABLES = {"uniform": "one rate for all layers (leanfleet search finds better ones)"}


def notes(groups: Sequence[Group]) -> list[str]:
    """Return what holds for these groups, whatever is said of them: how accuracy is meant, what is incomplete."""
    return [*_accuracy(groups), *_data(groups), *_unfinished(groups), *_cut(groups), *_bounds(groups)]


def federated_notes(groups: Sequence[Group]) -> list[str]:
    """Return what A and B are, where there are federated runs, and which tables of dropout vectors were used."""
    federated = [group for group in groups if group.family == "federated"]
    if not federated:
        return []
    tables = {group.label: group.records[0].totals.get("lut") for group in federated}
    return [
        "A: norms use the test batch's own statistics; B: those of training images, as exported networks do",
        *(f"{label}: table of dropout vectors: {_TABLES.get(o, o)}" for label, o in tables.items() if o),
    ]


def time_notes(groups: Sequence[Group]) -> list[str]:
    """Return what keeps virtual times of federated runs and of others from being compared."""
    federated = [group.label for group in groups if group.family == "federated"]
    if not federated or len(federated) == len(groups):
        return []
    return [
        f"{', '.join(federated)}: virtual time without links, which the others' has in it; and it compares only if "
        "[fleet] round_seconds make devices equally fast: a federated round is a device's share of the data, a split "
        "or gossip round so many mini-batches"
    ]


def rejections(groups: Sequence[Group]) -> list[str]:
    """Return which runs left out what they were sent, how often, and why first."""
    return [note for group in groups for record in group.records for note in _rejected(record)]


def _accuracy(groups: Sequence[Group]) -> list[str]:
    means = {
        "split": "accuracy is the mean over clients, each on test data like its own",
        "gossip": "accuracy is the mean over nodes' own models on all test data; bytes sent are received as well, "
        "and count both times",
    }
    labels = {family: [g.label for g in groups if g.family == family] for family in means}
    found = [f"{', '.join(labels[family])}: {what}" for family, what in means.items() if labels[family]]
    said = [note for g in groups for r in g.records for note in r.totals.get("notes") or ()]
    return found + list(dict.fromkeys(said))


def _data(groups: Sequence[Group]) -> list[str]:
    """Return what the runs say of their data; and that these differ, where they do."""
    records = [record for group in groups for record in group.records]
    said = list(dict.fromkeys(note for record in records if (note := record.totals.get("data_note"))))
    others = f" ({len(said) - 1} other choices with other seeds)" if said[1:] else ""
    found = [f"data: {said[0]}{others}"] if said else []
    used = sorted({(str(r.config.get("data", {}).get("source")), _partition(r)) for r in records})
    if len(used) > 1:
        found.append(
            f"not all on the same data: {'; '.join(f'{data}, {partition}' for data, partition in used)}"
        )
    return found


def _partition(record: Record) -> str:
    return str(record.config.get("data", {}).get("partition"))


def _unfinished(groups: Sequence[Group]) -> list[str]:
    names = [r.name for group in groups for r in group.records if not r.finished]
    return [f"not finished yet: {', '.join(names)}"] if names else []


def _cut(groups: Sequence[Group]) -> list[str]:
    return [
        f"{r.name}: ended after round {r.totals['rounds']} of {r.config['experiment']['rounds']}: "
        f"[budget] {r.totals['ended_by']} is used up"
        for group in groups
        for r in group.records
        if r.finished and r.totals.get("ended_by") not in (None, "rounds")
    ]


def _bounds(groups: Sequence[Group]) -> list[str]:
    bounds = [g.label for g in groups if g.method in METHODS and METHODS[g.method].resources == "full"]
    if not bounds or len(groups) == len(bounds):
        return []
    return [
        f"{', '.join(bounds)}: every device is given the means to train the whole network in time; "
        "a bound, not a competitor"
    ]


def _rejected(record: Record) -> list[str]:
    found = [(event["round"], why) for event in record.events for why in event.get("rejected", ())]
    if not found:
        return []
    round, why = found[0]
    what = "activations" if record.family == "split" else "updates"
    return [f"{record.name}: {what} left out: {len(found)}, the first in round {round} ({why})"]
