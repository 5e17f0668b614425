"""What a study says of gossip: accuracy before and after the final rounds, and by how much less is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from scores import markdown

from leanfleet.report import Group
from leanfleet.report.records import Record
from leanfleet.report.tables import percent, spread_of

_HEAD = (
    "gossip",
    "density",
    "eta",
    "values",
    "before final rounds [%]",
    "after [%]",
    "worst node [%]",
    "averaged model [%]",
    "final rounds R",
    "bits a value",
    "ratio",
    "ratio with final rounds",
)
_LOSS = 0.01


def ratios(groups: Sequence[Group]) -> Iterator[str]:
    """Yield a scenario's ratios of dense to sent bytes as Markdown; nothing if nothing is gossip."""
    gossip = [group for group in groups if group.family == "gossip"]
    if not gossip:
        return
    yield (
        "Accuracies are means over nodes. Ratio: bytes of dense messages over what was sent, both before the final "
        "rounds; then the same dense bytes over all that was sent. Bits a value: of a whole message, positions and "
        "header included, for each value that it holds.\n"
    )
    yield from markdown(_HEAD, [_line(group) for group in gossip])
    yield from _claim(gossip)


def _line(group: Group) -> list[str]:
    options = group.records[0].config["method"]
    return [
        group.label,
        str(options.get("density", 1)),
        _number(group, _total("eta")),
        str(options.get("values", "exact")),
        *(
            percent(spread_of([r.totals.get(key) for r in group.records]))
            for key in ("accuracy_before_final", "accuracy", "worst_accuracy", "accuracy_averaged")
        ),
        *(_number(group, find) for find in (_total("final_rounds"), _bits, _total("ratio"))),
        _number(group, _total("ratio_with_final")),
    ]


def _claim(gossip: Sequence[Group]) -> Iterator[str]:
    """Say what is the largest ratio that costs one percent of accuracy at most."""
    dense = [group for group in gossip if group.method == "sgp"]
    if not dense:
        return
    found = [
        (_mean(group, _total(ratio)), group, when)
        for group in gossip
        if group.method != "sgp"
        for accuracy, ratio, when in (
            ("accuracy_before_final", "ratio", "without final rounds"),
            ("accuracy", "ratio_with_final", "final rounds included"),
        )
        # Norms are taken anew after the final rounds, so each is held against its own kind.
        if _mean(group, _total(accuracy)) >= _mean(dense[0], _total(accuracy)) - _LOSS
    ]
    if not found:
        yield f"At most {100 * _LOSS:g} % below `{dense[0].label}`: none.\n"
        return
    ratio, group, when = max(found, key=lambda one: one[0])
    yield (
        f"At most {100 * _LOSS:g} % below `{dense[0].label}`, the largest ratio is **{ratio:.1f}**: `{group.label}`, "
        f"{when}, density {group.records[0].config['method'].get('density', 1)}, {_number(group, _bits)} bits a "
        f"value, R = {_number(group, _total('final_rounds'))}.\n"
    )


def _total(key: str) -> Callable[[Record], Any]:
    return lambda record: record.totals.get(key)


def _bits(record: Record) -> float | None:
    sent, values = record.totals.get("bytes_per_message"), record.totals.get("values_per_message")
    return 8 * sent / values if sent and values else None


def _mean(group: Group, find: Callable[[Record], Any]) -> float:
    values = [value for record in group.records if (value := find(record)) is not None]
    return sum(values) / len(values) if values else float("nan")


def _number(group: Group, find: Callable[[Record], Any]) -> str:
    mean = _mean(group, find)
    return "-" if mean != mean else f"{mean:.4g}"
