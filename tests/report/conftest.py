import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from leanfleet.runs import Run

Make = Callable[..., Path]


def experiment(method: str, seed: int, name: str, extra: str = "") -> str:
    general = f'[experiment]\nname = "{name}"\nseed = {seed}\n'
    return f'{general}[fleet]\nper_round = 4\n[method]\nname = "{method}"\n{extra}'


def events(rounds: int, top: float, eval_every: int = 1, round_seconds: float = 1.0) -> list[dict[str, Any]]:
    def event(n: int) -> dict[str, Any]:
        accuracy = {"accuracy": top * (1 - math.exp(-n / 8))} if n % eval_every == 0 else {}
        totals = {
            "macs_total": 1e9 * n,
            "bytes_up": 3000 * n,
            "bytes_down": 5000 * n,
            "stragglers": n,
            "late_share": 0.25,
        }
        return {"round": n, **accuracy, **totals, "seconds_virtual": round_seconds * n}

    return [event(n) for n in range(1, rounds + 1)]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a run's record by hand and return its folder; `facts` go into all its events and its summary."""

    def write(
        method: str = "distreal",
        seed: int = 0,
        *,
        rounds: int = 20,
        top: float = 0.9,
        name: str | None = None,
        finished: bool = True,
        extra: str = "",
        root: Path = tmp_path,
        facts: Mapping[str, Any] = {},
        **how: Any,
    ) -> Path:
        name = name or f"{method}-s{seed}"
        lines = [event | facts for event in events(rounds, top, **how)]
        with Run.create(name, experiment(method, seed, name, extra), root) as run:
            for event in lines:
                run.event(**event)
            if finished:
                run.finish(_summary(lines, method, seed) | facts)
            return run.folder

    return write


def _summary(lines: list[dict[str, Any]], method: str, seed: int) -> dict[str, Any]:
    last = lines[-1]
    accuracies = [event["accuracy"] for event in lines if event.get("accuracy") is not None] or [math.nan]
    spent = {key: last[key] for key in ("macs_total", "bytes_up", "bytes_down", "seconds_virtual")}
    accuracy = {"accuracy": accuracies[-1], "accuracy_recalibrated": 0.99 * accuracies[-1]}
    general = {"method": method, "seed": seed, "rounds": last["round"], "best_accuracy": max(accuracies)}
    return {**general, **accuracy, **spent, "stragglers": last["stragglers"], "late_share": 0.25}
