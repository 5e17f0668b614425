"""A study's C3-Scores, where it has more than federated methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from leanfleet.report import Group, rank
from leanfleet.report.score import Ranking, held_out_notes, terms_text
from leanfleet.report.tables import percent, quantity, spread_of

_HEAD = (
    "C3",
    "final [%]",
    "best [%]",
    "devices' MACs",
    "server's MACs",
    "bytes",
    "authors' bytes",
    "server keeps",
    "C3",
    "C3, authors' bytes",
)


def several_families(groups: Sequence[Group]) -> bool:
    """Return whether there are others than federated methods."""
    return any(group.family != "federated" for group in groups)


def within_budgets(groups: Sequence[Group], everyone: Sequence[Group]) -> Ranking:
    """Rank some groups by the budgets of all: their scores are those that they have among all."""
    terms = rank(everyone)["terms"]
    return rank(groups, bytes_max=terms["bytes_max"], macs_max=terms["macs_max"])


def scores(groups: Sequence[Group]) -> Iterator[str]:
    """Yield a scenario's scores, by measured bytes and by the authors', as Markdown; nothing if all is federated."""
    if not several_families(groups):
        return
    measured, authors = rank(groups), rank(groups, byte_mode="authors")
    theirs = {row["label"]: row for row in authors["groups"]}
    server, kept = (
        {group.label: spread_of([r.totals.get(key) for r in group.records]) for group in groups}
        for key in ("server_forward_macs", "server_bytes")
    )
    lines = [
        [
            row["label"],
            percent(row["accuracy"]),
            percent(row["best_accuracy"]),
            quantity(row["client_macs"]),
            quantity(server[row["label"]]),
            quantity(row["bytes"], "B"),
            quantity(theirs[row["label"]]["bytes"], "B"),
            quantity(kept[row["label"]], "B"),
            *(f"{r['c3']['mean']:.4f}" if r["c3"] else "-" for r in (row, theirs[row["label"]])),
        ]
        for row in measured["groups"]
    ]
    yield (
        "The C3-Score, best first. MACs are forward MACs. A split method's server keeps weights, masks and Adam's "
        "moments.\n"
    )
    yield from markdown(_HEAD, lines)
    for mode, ranking in (("measured", measured), ("authors'", authors)):
        yield f"- {mode} bytes: " + terms_text(ranking).replace("\n", "\n  ")
    yield from (f"- {note}" for note in held_out_notes(groups))
    yield ""


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of Markdown, without columns in which nothing is known."""
    known = [i for i in range(len(head)) if any(cells[i] != "-" for cells in lines)]
    rule = ["---", *("---:" for _ in head[1:])]
    return [*(f"| {' | '.join(cells[i] for i in known)} |" for cells in (head, rule, *lines)), ""]
