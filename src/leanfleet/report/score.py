"""Runs of all families ranked by the C3-Score: never without the terms that a score was given under."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from leanfleet.errors import RecordError, UserError
from leanfleet.ledger import PHI, c3_score
from leanfleet.report.notes import notes
from leanfleet.report.records import Group, Record
from leanfleet.report.tables import (
    Spread,
    columns,
    empty_table,
    narrow,
    percent,
    precise,
    quantity,
    spread_of,
    wide,
)

if TYPE_CHECKING:
    from rich.table import Table

ByteMode = Literal["measured", "authors"]
ComputeMode = Literal["forward", "training"]

_SPENT: tuple[Literal["bytes", "client_macs"], ...] = ("bytes", "client_macs")
_NAMES = ("method", "family", "seeds", "accuracy", "best", "MACs", "bytes", "C3")
_FORMULA = "C3 = accuracy * exp(-(bytes / bytes_max + MACs / macs_max) / T)"
_SHORTEST_LABEL = 10


class Terms(TypedDict):
    """What all scores of a ranking were given under; without them a score means nothing.

    Attributes:
        temperature: T.
        bytes_max: Budget of bytes; None where it was not given and nothing could be scored.
        macs_max: Budget of the clients' MACs, likewise.
        bytes_max_of: Label of the group whose consumption the budget is; None where it was given.
        macs_max_of: Likewise.
        byte_mode: Bytes as encoded, or in the authors' way of counting.
        compute_mode: Forward MACs, or training MACs.
    """

    temperature: float
    bytes_max: float | None
    macs_max: float | None
    bytes_max_of: str | None
    macs_max_of: str | None
    byte_mode: ByteMode
    compute_mode: ComputeMode


class Ranking(TypedDict):
    """Groups of runs by their scores, ready for JSON.

    Attributes:
        terms: What all scores were given under.
        groups: A row each, the best score first: label, method, family, seeds, a `Spread` or None for `accuracy`,
            `best_accuracy`, `bytes`, `client_macs` and `c3`, and which budgets are exceeded (`over_budget`).
        runs: A row for each run, with its record's folder.
        notes: What a reader must know beside the numbers.
    """

    terms: Terms
    groups: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    notes: list[str]


@dataclass(frozen=True)
class _Standing:
    """What a run has come to at its last evaluation."""

    accuracy: float | None
    best_accuracy: float | None
    bytes: float | None
    client_macs: float | None


def rank(
    groups: Sequence[Group],
    *,
    bytes_max: float | None = None,
    macs_max: float | None = None,
    temperature: float = 8.0,
    byte_mode: ByteMode = "measured",
    compute_mode: ComputeMode = "forward",
) -> Ranking:
    """Rank groups of runs, of one family or several, by the C3-Score (Chopra et al. 2021; see `c3_score`).

    Accuracy is that of the last evaluation; bytes are those that devices sent and received, MACs those of all
    devices together, heads included, a server's excluded. Every run is scored, and of a group's scores the mean
    counts. A group is over a budget if its mean consumption is.

    Args:
        groups: What to rank.
        bytes_max: Budget of bytes; the largest mean consumption of these groups if None.
        macs_max: Budget of MACs, likewise.
        temperature: T.
        byte_mode: `measured` bytes, or the `authors`' count of non-zero activations at 4 bytes each, without
            positions, labels, headers, hand-overs and averaging; where there is no such count, measured ones.
        compute_mode: `forward` MACs as in the authors' tables, or `training` MACs; where a record has no
            forward MACs of its own, they are a third of the training MACs.

    Raises:
        UserError: A budget or the temperature is not above 0.
        RecordError: A record holds numbers that cannot be.
    """
    standings = [[_standing(r, byte_mode, compute_mode) for r in group.records] for group in groups]
    rows = [_row(group, found) for group, found in zip(groups, standings, strict=True)]
    terms = _terms(rows, bytes_max, macs_max, temperature, byte_mode, compute_mode)
    runs = []
    for group, row, found in zip(groups, rows, standings, strict=True):
        scores = [_score(r, s, terms) for r, s in zip(group.records, found, strict=True)]
        row["c3"] = spread_of(scores)
        row["over_budget"] = [key for key in _SPENT if row["c3"] and row[key]["mean"] > _budget(terms, key)]
        runs += [_run_row(group, *each) for each in zip(group.records, found, scores, strict=True)]
    rows.sort(key=lambda row: -row["c3"]["mean"] if row["c3"] else math.inf)
    return {"terms": terms, "groups": rows, "runs": runs, "notes": _notes(groups, rows, runs, terms)}


def render_ranking(ranking: Ranking, width: int) -> list[Table]:
    """Return the table of a ranking, with its terms, for a console of `width` columns.

    Long labels are folded; where that does not help, a small table for each group takes its place.
    """
    cells = [_cells(row) for row in ranking["groups"]]
    title = "C3-Score; accuracy of the network in use [%]"
    room = width - columns(wide(title, [_NAMES, *(("", *line[1:]) for line in cells)])) + len(_NAMES[0])
    if room >= _SHORTEST_LABEL:
        folded = [(textwrap.fill(line[0], room), *line[1:]) for line in cells]
        table = wide(title, [_NAMES, *folded])
        table.columns[1].justify = "left"
        table.caption, table.caption_justify = terms_text(ranking), "left"
        return [table]
    about = empty_table(None)
    about.add_column("terms of all scores", overflow="fold")
    about.add_row(terms_text(ranking))
    return [*(narrow(zip(_NAMES, line, strict=True)) for line in cells), about]


def terms_text(ranking: Ranking) -> str:
    """Return the formula and everything that the scores of a ranking hang on, in a few lines."""
    terms = ranking["terms"]
    budgets = (
        _budget_text("bytes_max", terms["bytes_max"], "B", terms["bytes_max_of"]),
        _budget_text("macs_max", terms["macs_max"], "MACs", terms["macs_max_of"]),
    )
    over = "\n!: more than the budget" if any(row["over_budget"] for row in ranking["groups"]) else ""
    return (
        f"{_FORMULA}\nT = {terms['temperature']:g}; {'; '.join(budgets)}\n"
        f"bytes: {terms['byte_mode']}; MACs: {terms['compute_mode']}, of all clients{over}"
    )


def held_out_notes(groups: Sequence[Group]) -> list[str]:
    """Return what split runs are worth to clients that took no part, where there were any."""
    found = []
    for group in groups:
        totals = [record.totals for record in group.records]
        mean, nearest = (
            spread_of([t.get(key) for t in totals])
            for key in ("held_out_accuracy", "held_out_accuracy_nearest")
        )
        if mean and nearest:
            found.append(
                f"{group.label}: clients that were held out reach {percent(mean)} % with the mean of all halves and "
                f"masks, {percent(nearest)} % with those of the client whose network fits a few of their samples best"
            )
    return found


def _standing(record: Record, byte_mode: ByteMode, compute_mode: ComputeMode) -> _Standing:
    evaluations = record.evaluations
    # What was spent after the last evaluation of an unfinished run has not shown yet.
    at = evaluations[-1] if evaluations and not record.finished else record.totals
    known = [event["accuracy"] for event in evaluations]
    up, down = at.get("bytes_up"), at.get("bytes_down")
    measured = None if up is None or down is None else up + down
    training = at.get("macs_total")
    forward = at.get("forward_macs", None if training is None else training / PHI)
    return _Standing(
        at.get("accuracy", None),
        at.get("best_accuracy", max(known, default=None)),
        at.get("bytes_authors", measured) if byte_mode == "authors" else measured,
        forward if compute_mode == "forward" else training,
    )


def _row(group: Group, standings: Sequence[_Standing]) -> dict[str, Any]:
    return {
        "label": group.label,
        "method": group.method,
        "family": group.family,
        "seeds": [record.seed for record in group.records],
        "accuracy": spread_of([s.accuracy for s in standings]),
        "best_accuracy": spread_of([s.best_accuracy for s in standings]),
        "client_macs": spread_of([s.client_macs for s in standings]),
        "bytes": spread_of([s.bytes for s in standings]),
    }


def _run_row(group: Group, record: Record, standing: _Standing, score: float | None) -> dict[str, Any]:
    return {
        "record": str(record.folder),
        "label": group.label,
        "method": record.method,
        "family": group.family,
        "seed": record.seed,
        "finished": record.finished,
        "accuracy": standing.accuracy,
        "best_accuracy": standing.best_accuracy,
        "client_macs": standing.client_macs,
        "bytes": standing.bytes,
        "c3": score,
    }


def _terms(
    rows: Sequence[dict[str, Any]],
    bytes_max: float | None,
    macs_max: float | None,
    temperature: float,
    byte_mode: ByteMode,
    compute_mode: ComputeMode,
) -> Terms:
    of_bytes, of_macs = (_largest(rows, key) for key in _SPENT)
    terms: Terms = {
        "temperature": temperature,
        "bytes_max": of_bytes[0] if bytes_max is None else bytes_max,
        "macs_max": of_macs[0] if macs_max is None else macs_max,
        "bytes_max_of": of_bytes[1] if bytes_max is None else None,
        "macs_max_of": of_macs[1] if macs_max is None else None,
        "byte_mode": byte_mode,
        "compute_mode": compute_mode,
    }
    # Wrong terms are not to be blamed on the first run.
    budgets = {"bytes_max": bytes_max, "macs_max": macs_max}
    given = {name: 1.0 if limit is None else limit for name, limit in budgets.items()}
    c3_score(0.0, 0.0, 0.0, temperature=temperature, **given)
    return terms


def _largest(
    rows: Sequence[dict[str, Any]], key: Literal["bytes", "client_macs"]
) -> tuple[float | None, str | None]:
    """Return the largest mean consumption among groups that can be scored, and whose it is."""
    known = [row for row in rows if row["accuracy"] and all(row[spent] for spent in _SPENT)]
    if not known:
        return None, None
    most = max(known, key=lambda row: row[key]["mean"])
    # Where nobody has sent anything, every budget gives the same scores.
    return float(most[key]["mean"]) or 1.0, most["label"]


def _budget(terms: Terms, key: Literal["bytes", "client_macs"]) -> float:
    limit = terms["bytes_max"] if key == "bytes" else terms["macs_max"]
    return math.inf if limit is None else limit


def _score(record: Record, standing: _Standing, terms: Terms) -> float | None:
    if standing.accuracy is None or standing.bytes is None or standing.client_macs is None:
        return None
    if terms["bytes_max"] is None or terms["macs_max"] is None:
        return None
    try:
        found = c3_score(
            standing.accuracy,
            standing.bytes,
            standing.client_macs,
            bytes_max=terms["bytes_max"],
            macs_max=terms["macs_max"],
            temperature=terms["temperature"],
        )
    except UserError as error:
        raise RecordError(f"{record.folder}: {error}") from None
    return found.score


def _notes(
    groups: Sequence[Group], rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]], terms: Terms
) -> list[str]:
    scored = [row for row in rows if row["c3"]]
    found = []
    if terms["bytes_max_of"] or terms["macs_max_of"]:
        found.append(
            "a budget that is not given is the largest consumption among the runs compared: scores change with who is "
            "compared (leanfleet score --bytes-max and --macs-max fix them)"
        )
    if len(scored) == 1 and terms["bytes_max_of"] and terms["macs_max_of"]:
        share = math.exp(-2 / terms["temperature"])
        found.append(f"compared with nothing else, {scored[0]['label']} gets {share:.4f} of its accuracy")
    measured = [
        g.label for g in groups if not all("bytes_authors" in r.totals for r in g.records if r.totals)
    ]
    if terms["byte_mode"] == "authors" and measured:
        found.append(f"{', '.join(measured)}: bytes are measured; there is no authors' count of them")
    lacking = [run["record"] for run in runs if run["accuracy"] is None]
    if lacking:
        found.append(f"no score where a run was never evaluated: {', '.join(lacking)}")
    return [*found, *held_out_notes(groups), *notes(groups)]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    best: Spread | None = row["best_accuracy"]
    over = {key: " !" if key in row["over_budget"] else "" for key in _SPENT}
    return (
        row["label"],
        row["family"],
        str(len(row["seeds"])),
        percent(row["accuracy"]),
        "-" if best is None else percent({"mean": best["mean"], "std": None}),
        quantity(row["client_macs"]) + over["client_macs"],
        quantity(row["bytes"], "B") + over["bytes"],
        _score_text(row["c3"]),
    )


def _score_text(score: Spread | None) -> str:
    if score is None:
        return "-"
    return f"{score['mean']:.4f}" + ("" if score["std"] is None else f"±{score['std']:.4f}")


def _budget_text(name: str, value: float | None, unit: str, whose: str | None) -> str:
    if value is None:
        return f"{name}: none, nothing could be scored"
    return f"{name} = {precise(value, unit)} ({f'the most here: {whose}' if whose else 'given'})"
