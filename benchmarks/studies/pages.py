"""A study's page: tables, numbers for machines, pictures, and what they were made with.

```
docs/results/STUDY/
  README.md        the tables
  summary.json     the same numbers, a run and a label each
  curves.json      every run's evaluations: [round, virtual seconds, MACs, accuracy]
  recipe.toml      what was run
  SCENARIO/        accuracy against rounds, virtual time and MACs; in folders of their own for variants of a label
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from ratios import ratios
from recipe import Study, tables
from scores import markdown, scores, several_families, within_budgets

from leanfleet.errors import RecordError
from leanfleet.experiment import METHODS, FederatedFleet
from leanfleet.report import Group, Record, draw, draw_ranking, read, summarise
from leanfleet.report.tables import Spread, percent, quantity, seconds, spread_of
from leanfleet.runs import Run
from leanfleet.storage import write_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Budgets:
    """What was spent where methods are compared at equal means: the least that any of them spent in the end.

    Methods with full resources are not asked: they are a bound.

    Attributes:
        seconds_virtual: Virtual seconds.
        macs: Training MACs of all devices.
    """

    seconds_virtual: float
    macs: float


@dataclass(frozen=True)
class Scenario:
    """What is finished of a scenario.

    Attributes:
        name: Its name.
        groups: A label each, in the recipe's order.
        budgets: See there.
        rows: Numbers of the groups, by label.
    """

    name: str
    groups: tuple[Group, ...]
    budgets: Budgets
    rows: Mapping[str, Row]


def write_page(study: Study, folder: Path, output: Path) -> Path:
    """Write the page of what is finished, and return its file.

    Args:
        study: The study.
        folder: Where its records are.
        output: Where to put it.

    Raises:
        RecordError: Nothing is finished yet, or a record is damaged.
        StorageError: The disk refuses.
    """
    scenarios = [found for name in study.recipe.scenarios if (found := _scenario(study, folder, name))]
    if not scenarios:
        raise RecordError(
            f"{folder}: no run of {study.path.name} is finished yet, there is nothing to report"
        )
    sessions = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("session-*.json"))
    ]
    missing = [task.key for task in study.tasks if not Run(folder / task.key).finished]
    for scenario in scenarios:
        for where, groups in _pictures(study, scenario):
            draw(groups, output / where, title=scenario.name)
            if several_families(scenario.groups):
                draw_ranking(within_budgets(groups, scenario.groups), groups, output / where)
    write_text(output / "recipe.toml", study.path.read_text(encoding="utf-8"))
    write_text(output / "curves.json", _curves(scenarios))
    summary = _summary(study, scenarios, sessions, missing)
    # Little indentation: most lines are deep, and the file is kept under version control.
    write_text(output / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_text(output / "README.md", "\n".join(_page(study, scenarios, sessions, missing)))
    return output / "README.md"


def _scenario(study: Study, folder: Path, name: str) -> Scenario | None:
    found: dict[str, list[Path]] = {label: [] for label in study.labels(name)}
    for task in study.tasks:
        if task.scenario == name and Run(folder / task.key).finished:
            found[task.label].append(folder / task.key)
    records = {label: tuple(read(folders)) for label, folders in found.items() if folders}
    groups = tuple(Group(label, of[0].method, of) for label, of in records.items())
    if not groups:
        return None
    budgets = _budgets(groups)
    numbers = _numbers(budgets, study.recipe.target)
    return Scenario(name, groups, budgets, {group.label: _row(group, numbers) for group in groups})


def _budgets(groups: Sequence[Group]) -> Budgets:
    own = [g for g in groups if METHODS[g.method].resources == "own"] or groups
    totals = [record.totals for group in own for record in group.records]
    return Budgets(min(t["seconds_virtual"] for t in totals), min(t["macs_total"] for t in totals))


def _numbers(budgets: Budgets, target: float | None) -> dict[str, Callable[[Record], float | None]]:
    """Return how each number of a run is found; accuracies and shares are fractions."""
    found: dict[str, Callable[[Record], float | None]] = {
        **{key: _total(key) for key in ("accuracy", "accuracy_recalibrated", "best_accuracy")},
        "accuracy_at_quarter": lambda r: r.interpolated(r.totals["rounds"] / 4, "round"),
        "accuracy_at_half": lambda r: r.interpolated(r.totals["rounds"] / 2, "round"),
        "accuracy_at_equal_seconds": lambda r: r.interpolated(budgets.seconds_virtual, "seconds_virtual"),
        "accuracy_at_equal_macs": lambda r: r.interpolated(budgets.macs, "macs_total"),
        "late_share": lambda r: r.late_share,
        "macs_share": lambda r: r.totals["macs_total"] / r.available_macs if r.available_macs else None,
        **{key: _total(key) for key in ("rounds", "macs_total", "bytes_up", "bytes_down")},
        **{key: _total(key) for key in ("seconds_virtual", "seconds_wall")},
    }
    if target is not None:
        found["rounds_to_target"] = lambda r: r.reached(target)
        found["seconds_to_target"] = lambda r: r.reached(target, "seconds_virtual")
    return found


def _total(key: str) -> Callable[[Record], float | None]:
    return lambda record: record.totals.get(key)


def _row(group: Group, numbers: Mapping[str, Callable[[Record], float | None]]) -> Row:
    runs = [{"seed": r.seed, **{key: find(r) for key, find in numbers.items()}} for r in group.records]
    return {
        "label": group.label,
        "method": group.method,
        "runs": runs,
        **{key: spread_of([run[key] for run in runs]) for key in numbers},
    }


def _pictures(study: Study, scenario: Scenario) -> Iterator[tuple[Path, list[Group]]]:
    """Yield where to draw what: variants of a label beside that label, all else together."""
    of = {group.label: study.recipe.methods[group.label].variant_of for group in scenario.groups}
    yield Path(scenario.name), [group for group in scenario.groups if of[group.label] is None]
    for label in dict.fromkeys(label for label in of.values() if label):
        together = [group for group in scenario.groups if label in (group.label, of[group.label])]
        yield Path(scenario.name) / f"variants-of-{label}", together


def _curves(scenarios: Sequence[Scenario]) -> str:
    """Return every run's evaluations as JSON, a line a run: what the pictures are made of."""
    lines = []
    for scenario in scenarios:
        for record in (record for group in scenario.groups for record in group.records):
            points = [
                [e["round"], *(_short(e[key], 5) for key in ("seconds_virtual", "macs_total", "accuracy"))]
                for e in record.evaluations
            ]
            name = json.dumps(f"{scenario.name}/{record.name}")
            lines.append(f" {name}: {json.dumps(points, separators=(',', ':'))}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _summary(
    study: Study, scenarios: Sequence[Scenario], sessions: Sequence[Row], missing: Sequence[str]
) -> dict[str, Any]:
    found = {
        "study": study.name,
        "title": study.recipe.title,
        "target": study.recipe.target,
        "base": tables(study.recipe.base),
        "seconds_compute": _compute(scenarios),
        "sessions": list(sessions),
        "missing": list(missing),
        "scenarios": {
            s.name: {
                "settings": tables(study.recipe.scenarios[s.name]),
                "equal_seconds_virtual": s.budgets.seconds_virtual,
                "equal_macs": s.budgets.macs,
                "labels": dict(s.rows),
            }
            for s in scenarios
        },
    }
    # Sorted, so that a page that is made again differs only where numbers do.
    rounded: dict[str, Any] = json.loads(json.dumps(found, sort_keys=True), parse_float=_parsed)
    return rounded


def _page(
    study: Study, scenarios: Sequence[Scenario], sessions: Sequence[Row], missing: Sequence[str]
) -> Iterator[str]:
    recipe = study.recipe
    yield f"# {recipe.title}\n"
    if recipe.about:
        yield f"{recipe.about.strip()}\n"
    yield from _made_with(study, scenarios, sessions)
    if missing:
        yield f"**Not finished: {len(missing)} of {len(study.tasks)} runs**, {_some(missing)}.\n"
    yield "## All scenarios\n"
    yield "Final accuracy of the network in use [%], mean and deviation over seeds:\n"
    yield from _across(study, scenarios, "accuracy")
    for scenario in scenarios:
        yield from _seed_by_seed(scenario)
    if any(row["late_share"] and row["late_share"]["mean"] for s in scenarios for row in s.rows.values()):
        yield (
            "Late share [%]: participations with work undone at the deadline. Where partial work counts, a late device "
            "loses what is left of its round, else all of it.\n"
        )
        yield from _across(study, scenarios, "late_share")
    yield from _legend(scenarios, recipe.target)
    for scenario in scenarios:
        yield from _section(study, scenario)


def _made_with(study: Study, scenarios: Sequence[Scenario], sessions: Sequence[Row]) -> Iterator[str]:
    e = study.tasks[0].experiment
    records = [record for scenario in scenarios for group in scenario.groups for record in group.records]
    network = f"{Path(e.data.source).name} ({e.data.partition}), {e.network.name}"
    few = f", {e.fleet.per_round} a round" if isinstance(e.fleet, FederatedFleet) else ""
    fleet = f"{records[0].totals['devices']:,} devices{few}"
    general = f"{e.experiment.rounds:,} rounds, evaluated every {e.experiment.eval_every}"
    seeds = max(len(group.records) for scenario in scenarios for group in scenario.groups)
    runs = f"{len(records)} runs, {'one seed' if seeds == 1 else f'up to {seeds} seeds'} a label"
    yield f"Scale: {network}; {fleet}; {general}; {runs}. Every setting: [recipe.toml](recipe.toml).\n"
    clock = f", {sum(s['seconds_wall'] for s in sessions):,.0f} s on the clock" if sessions else ""
    yield f"Time: {_compute(scenarios):,.0f} s of computing, summed over runs{clock}.\n"
    for session in {s["command"]: s for s in sessions}.values():
        what = [f"{name} {session[name]}" for name in ("leanfleet", "python", "torch")]
        where = [session["cpu"], f"{session['cores']} cores", *([session["gpu"]] if session["gpu"] else [])]
        yield f"```\n{session['command']}\n```\n"
        yield f"{', '.join(what)}; {', '.join(where)}; {session['begun']}.\n"


def _compute(scenarios: Sequence[Scenario]) -> float:
    runs = [run for scenario in scenarios for row in scenario.rows.values() for run in row["runs"]]
    return float(sum(run["seconds_wall"] for run in runs))


def _across(study: Study, scenarios: Sequence[Scenario], key: str) -> list[str]:
    labels = [label for label in study.recipe.methods if any(label in s.rows for s in scenarios)]
    lines = [
        [label, *(percent(s.rows[label][key]) if label in s.rows else "" for s in scenarios)]
        for label in labels
    ]
    return markdown(["", *(s.name for s in scenarios)], lines)


def _seed_by_seed(scenario: Scenario) -> Iterator[str]:
    """Yield accuracies by seed, where labels have different ones: their means do not compare."""
    found = {
        row["label"]: {run["seed"]: run["accuracy"] for run in row["runs"]} for row in scenario.rows.values()
    }
    seeds = sorted({seed for of in found.values() for seed in of})
    if all(len(of) == len(seeds) for of in found.values()):
        return
    yield f"{scenario.name}, seed by seed, for means over different seeds do not compare:\n"
    yield from markdown(["", *(str(seed) for seed in seeds)], [
        [label, *(percent(spread_of([of[seed]])) if seed in of else "" for seed in seeds)]
        for label, of in found.items()
    ])  # fmt: skip


def _legend(scenarios: Sequence[Scenario], target: float | None) -> Iterator[str]:
    yield (
        "In the tables below, accuracies are of the network in use (HeteroFL, FjORD: the widest level that a device "
        "has held; ensemble: the vote), evaluation A unless they say B, interpolated where "
        "they fall between two evaluations. Equal time and equal MACs are the least that any run with limited "
        "resources spent in the end. MACs are training MACs of all devices, work that came too late included; their "
        "share is of what the devices that took part could have spent. `-`: not in every run.\n"
    )
    if target is not None:
        yield f"- target: {100 * target:g} %, at an evaluation"
    notes = {scenario.name: summarise(scenario.groups)["notes"] for scenario in scenarios}
    for note in dict.fromkeys(note for found in notes.values() for note in found):
        where = [name for name, found in notes.items() if note in found]
        yield f"- {note}" if len(where) == len(notes) else f"- {', '.join(where)}: {note}"
    yield ""


def _section(study: Study, scenario: Scenario) -> Iterator[str]:
    rows, budgets = list(scenario.rows.values()), scenario.budgets
    settings = tomli_w.dumps(tables(study.recipe.scenarios[scenario.name])).strip()
    yield f"## {scenario.name}\n"
    if settings:
        yield f"```toml\n{settings}\n```\n"
    at = [f"at {seconds(budgets.seconds_virtual)}", f"at {quantity(spread_of([budgets.macs]), 'MACs')}"]
    head = ["accuracy [%]", "runs", "final A", "final B", "best", "1/4 of rounds", "1/2 of rounds", *at]
    accuracies = (
        "accuracy",
        "accuracy_recalibrated",
        "best_accuracy",
        "accuracy_at_quarter",
        "accuracy_at_half",
    )
    equal = ("accuracy_at_equal_seconds", "accuracy_at_equal_macs")
    yield from markdown(head, [
        [row["label"], str(len(row["runs"])), *(percent(row[key]) for key in (*accuracies, *equal))]
        for row in rows
    ])  # fmt: skip
    target = ["rounds to target", "time to target"] if study.recipe.target is not None else []
    head = ["cost", "late [%]", "MACs", "share [%]", "up", "down", "time", *target]
    yield from markdown(head, [[row["label"], *_costs(row)] for row in rows])
    yield from ratios(scenario.groups)
    yield from scores(scenario.groups)
    for where, groups in _pictures(study, scenario):
        if where.name != scenario.name:
            yield f"{groups[0].label} and its variants:\n"
        if several_families(scenario.groups):
            yield f"![Accuracy against bytes, {scenario.name}]({where.as_posix()}/score.png)\n"
        for axis in ("rounds", "time", "macs"):
            yield f"![Accuracy against {axis}, {scenario.name}]({where.as_posix()}/accuracy-{axis}.png)\n"


def _costs(row: Row) -> list[str]:
    cells = [
        percent(row["late_share"]),
        quantity(row["macs_total"]),
        percent(row["macs_share"]),
        quantity(row["bytes_up"], "B"),
        quantity(row["bytes_down"], "B"),
        _time(row["seconds_virtual"]),
    ]
    if "rounds_to_target" in row:
        cells += [quantity(row["rounds_to_target"]), _time(row["seconds_to_target"])]
    return cells


def _time(spread: Spread | None) -> str:
    return "-" if spread is None else seconds(spread["mean"])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _short(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _parsed(text: str) -> float:
    return _short(float(text), 6)
