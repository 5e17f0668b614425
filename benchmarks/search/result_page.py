"""A study's page: tables, numbers for machines, pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numbers_of import SHARES, Found, advantage, final, read
from pictures import draw
from settings import SearchStudy
from variants import UNIFORM

from leanfleet.engines.describe import machine
from leanfleet.errors import RecordError, StorageError
from leanfleet.report.tables import Spread, quantity, spread_of
from leanfleet.storage import write_text

_NOISE = {
    "rank_loss_accuracy": "rank correlation of loss and accuracy, all seeds",
    "predicts_accuracy": "rank correlation of accuracy of one seed with that of the others",
    "predicts_loss": "rank correlation of loss of one seed with accuracy of the others",
    "independent_accuracy": "variance of the difference of two vectors, accuracy, seeds of their own",
    "common_accuracy": "the same, common random numbers",
    "independent_loss": "variance of the difference of two vectors, loss, seeds of their own",
    "common_loss": "the same, common random numbers",
    "agrees_accuracy": "rank correlation of accuracy with accuracy at full size, all seeds",
    "agrees_loss": "rank correlation of loss with accuracy at full size, all seeds",
    "full_independent_accuracy": "full size: variance of the difference of two vectors, accuracy, seeds of their own",
    "full_common_accuracy": "the same, common random numbers",
    "full_independent_loss": "full size: variance of the difference of two vectors, loss, seeds of their own",
    "full_common_loss": "the same, common random numbers",
}
_SCALED = ("population", "generations", "steps", "batch_size", "held_out")


def write_page(study: SearchStudy, folder: Path, output: Path, command: str) -> Path:
    """Write the page of what is finished, and return its file.

    Args:
        study: The study.
        folder: Where its records are.
        output: Where to put it.
        command: What was run.

    Raises:
        RecordError: Nothing is finished yet.
        StorageError: The disk refuses.
    """
    searches, noises = read(study, folder)
    if not searches:
        raise RecordError(
            f"{folder}: no search of {study.path.name} is finished yet, there is nothing to report"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{output}: cannot be written: {error.strerror}") from error
    noise = {key: spread_of([found[key] for found in noises.values()]) for key in _NOISE} if noises else {}
    rows = {strategy: _row(searches, found) for strategy, found in searches.items()}
    missing = [job.key for job in study.jobs if not (folder / f"{job.key}.json").is_file()]
    told = {
        "study": study.name, "network": study.recipe.network, "data": study.recipe.data, "scale": study.recipe.scale,
        "missing": missing, "strategies": rows, "noise": noise, "noise_seeds": list(noises.values()),
    }  # fmt: skip
    rounded = json.loads(json.dumps(told), parse_float=lambda text: float(f"{float(text):.6g}"))
    write_text(output / "results.json", json.dumps(rounded, indent=1) + "\n")
    write_text(output / "recipe.toml", study.path.read_text(encoding="utf-8"))
    draw(searches, f"{study.recipe.network}, {study.recipe.data}", output)
    write_text(output / "README.md", "\n".join(_page(study, rows, noise, missing, command)))
    return output / "README.md"


def _row(searches: dict[str, list[Found]], found: Sequence[Found]) -> dict[str, Any]:
    """Return the numbers of a strategy."""
    volumes = [one.fronts[-1].hypervolume for one in found]
    papers, lines = (_volumes(searches, name, found) for name in ("paper", UNIFORM))
    goals = [p and one.samples_to(0.99 * p) for one, p in zip(found, papers, strict=True)]
    gains = zip(*(advantage(searches, one) for one in found), strict=True)
    return {
        "seeds": [one.job.seed for one in found],
        "samples": spread_of([one.samples[-1] for one in found]),
        "samples_to_99": spread_of(goals),
        "hypervolume": spread_of(volumes),
        "ratio_to_paper": spread_of([p and v / p for v, p in zip(volumes, papers, strict=True)]),
        "ratio_to_uniform": spread_of([p and v / p for v, p in zip(volumes, lines, strict=True)]),
        "seconds": spread_of([one.record.get("seconds") for one in found]),
        "share_outside_training": spread_of([one.outside for one in found]),
        "gain_over_uniform": {str(share): spread_of(list(g)) for share, g in zip(SHARES, gains, strict=True)},
        "gain": {str(share): spread_of([one.fronts[-1].at(share) for one in found]) for share in SHARES},
        "runs": [
            {
                "seed": one.job.seed,
                "samples": one.samples,
                "hypervolumes": [front.hypervolume for front in one.fronts],
                "front": [
                    list(point)
                    for f in one.fronts[-1:]
                    for point in zip(
                        *(v.tolist() for v in (f.macs, f.f1, f.f2, f.error, f.accuracy)), strict=True
                    )
                ],
            }
            for one in found
        ],
    }


def _volumes(searches: dict[str, list[Found]], strategy: str, beside: Sequence[Found]) -> list[float | None]:
    """Return the last hypervolumes of a strategy, of the seeds that others have; None where it has none."""
    fronts = [final(searches, strategy, one.job.seed) for one in beside]
    return [None if front is None else front.hypervolume for front in fronts]


def _page(
    study: SearchStudy,
    rows: Mapping[str, Any],
    noise: Mapping[str, Any],
    missing: Sequence[str],
    command: str,
) -> Iterator[str]:
    recipe, paper, there = study.recipe, study.paper, machine()
    yield f"# {recipe.title}\n"
    if recipe.about:
        yield f"{recipe.about.strip()}\n"
    yield f"```\n{command}\n```\n"
    packages = f"leanfleet {there['leanfleet']}, python {there['python']}, torch {there['packages']['torch']}"
    yield (
        f"{packages}; {there['cpu']}, {there['cores']} cores. Every number: [results.json](results.json); settings: "
        "[recipe.toml](recipe.toml).\n"
    )
    if missing:
        more = " ..." if len(missing) > 3 else ""
        yield f"**Not finished: {len(missing)} of {len(study.jobs)} records**, {', '.join(missing[:3])}{more}.\n"
    yield from _how(study)
    yield "## Hypervolume\n"
    head = ["strategy", "seeds", "training samples", "hypervolume", "of paper's [%]", "samples to 99 %", "time",
            "outside training [%]"]  # fmt: skip
    yield from _table(head, [
        [
            name, str(len(row["seeds"])), quantity(row["samples"]), _number(row["hypervolume"], 1, 3),
            _number(row["ratio_to_paper"], 100, 1), quantity(row["samples_to_99"]), _time(row["seconds"]),
            _number(row["share_outside_training"], 100, 2),
        ]
        for name, row in rows.items()
    ])  # fmt: skip
    yield (
        "Mean and deviation over seeds; `-`: not in every run. Samples to 99 %: at the first front judged that has "
        "99 % of the hypervolume of `paper`'s last one, of the same seed. Time: of the whole search, pre-training "
        "included, without a last look at its front. Outside training: share of the generations' time in which no "
        "worker trained or measured.\n"
    )
    yield "![Hypervolume against training samples](hypervolume.png)\n"
    yield "## Accuracy at fixed MACs\n"
    yield (
        "Gain in accuracy of a short training [percentage points]: of one rate for all layers, then what the others "
        "have more, at shares of the whole network's MACs. Straight lines between the vectors of a front; mean and "
        "deviation over seeds. `-`: no vector is that cheap, or there is nothing to compare with.\n"
    )
    yield from _table(["strategy", *(f"{100 * share:.0f} %" for share in SHARES)], list(_gains(rows)))
    yield "![Fronts](fronts.png)\n"
    yield (
        "Points: vectors of every seed's last front that no other one beats. Lines: mean over seeds; bars: least and "
        "greatest of them.\n"
    )
    if noise:
        yield "## How noisy the objective is\n"
        yield (
            f"{recipe.vectors} random vectors, {recipe.fresh} seeds each, in units of the second objective. Full size: "
            "short trainings of 64 mini-batches of 64, from a start of their own.\n"
        )
        yield from _table(["", "mean"], [[_NOISE[key], _number(value, 1, 4)] for key, value in noise.items()])
    yield f"Anchors: {2 * paper.anchors} short trainings for each search come on top of the samples above.\n"


def _how(study: SearchStudy) -> Iterator[str]:
    recipe, paper = study.recipe, study.paper
    last = " (of the single changes to a protocol: of the last front)" if recipe.ways else ""
    full = {"population": 64, "generations": 50, "steps": 64, "batch_size": 64, "held_out": 5000}
    sizes = ", ".join(f"{name.replace('_', ' ')} {getattr(paper, name)} ({full[name]})" for name in _SCALED)
    yield (
        f"**Scale {recipe.scale:g}.** `paper` here and in the paper: {sizes}; {paper.seeds} seeds a vector as there. "
        "All other protocols are made smaller by the same factors, and what a model is fitted to by the same share of "
        f"short trainings: {paper.trials:,} for `paper`, "
        + ", ".join(
            f"{study.protocol(name).trials:,} for `{name}`"
            for name in recipe.compared
            if name not in ("paper", UNIFORM)
        )
        + ".\n"
    )
    yield (
        f"**Judged alike.** Of the fronts of up to {recipe.checkpoints} generations{last}, {recipe.points} vectors "
        "(both extremes, the others evenly spread in MACs) are trained again with "
        f"{recipe.fresh} fresh seeds that no search has seen, the same for all vectors of all strategies, from the "
        "paper's start with the paper's measure "
        "(accuracy). Hypervolumes (reference point 1.1, 1.1) are of these results only, which are not counted as "
        "training samples. The luck of the best of many remains in them, alike for all.\n"
    )


def _gains(rows: Mapping[str, Any]) -> Iterator[list[str]]:
    if UNIFORM in rows:
        yield [f"{UNIFORM} (gain)", *(_number(rows[UNIFORM]["gain"][str(share)], 100, 2) for share in SHARES)]
    for name, row in rows.items():
        if name != UNIFORM:
            cells = (_number(row["gain_over_uniform"][str(share)], 100, 2, "+") for share in SHARES)
            yield [name, *cells]


def _number(spread: Spread | None, factor: float, digits: int, sign: str = "") -> str:
    if spread is None:
        return "-"
    deviation = "" if spread["std"] is None else f"±{factor * spread['std']:.{digits}f}"
    return f"{factor * spread['mean']:{sign}.{digits}f}{deviation}"


def _time(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread['mean']:,.0f} s"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in head[1:])]
    return [*(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)), ""]
