"""The loop over rounds: budgets, evaluations, events, checkpoints, the summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leanfleet.energy import Joules
from leanfleet.engines.center import Center, named
from leanfleet.engines.job import AnyJob, GossipJob
from leanfleet.errors import RecordError
from leanfleet.ledger import Ledger
from leanfleet.runs import Checkpoint, Run
from leanfleet.workers import Workers


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        run: Name of the record.
        round: Rounds done.
        rounds: Rounds to do.
        share: Share of the present round that is done, by devices.
        accuracy: Last evaluation, whole network; None before the first.
        seconds_virtual: Virtual time.
        late_share: Share of participations that were late.
    """

    run: str
    round: int
    rounds: int
    share: float
    accuracy: float | None
    seconds_virtual: float
    late_share: float


Watch = Callable[[Progress], None]


class Loop:
    """The rounds of one run: what is the same for every family and engine.

    Args:
        record: Where it is kept; created or opened for writing.
        job: What is run.
        center: What the family has at the centre.
        workers: Worker processes.
        watch: Is told about progress.
        device: Where they compute; kept for who goes on.
    """

    def __init__(
        self, record: Run, job: AnyJob, center: Center, workers: int, watch: Watch, device: str = "cpu"
    ) -> None:
        self.record, self.job, self.center, self.workers, self.watch = record, job, center, workers, watch
        self.device = device
        self.experiment = job.experiment
        self.ledger = Ledger.empty(job.devices)
        self.round = 0
        self.accuracy: float | None = None
        self.best: float | None = None
        # Whether what came after the last round is in the record.
        self.closed = False
        self._clock = time.monotonic()

    def go(self, pool: Workers | None, restored: Checkpoint | None = None) -> None:
        """Run all rounds that are left, evaluate, and finish the record.

        Args:
            pool: Worker processes, where the centre has some.
            restored: Where to go on.
        """
        if restored is not None:
            self._restore(restored, pool)
        self._show(0.0)
        while not self._ended():
            self._play_round(pool)
        added = self.center.finish(pool, self.ledger, self._show)
        if "accuracy" in added and not self.closed:
            self._book_end(added)
        self._pass_wall_time()
        self.record.finish(self._summary() | added)

    def _restore(self, checkpoint: Checkpoint, pool: Workers | None) -> None:
        state = checkpoint.state
        self.round = checkpoint.round
        try:
            self.ledger = Ledger.from_state(state["ledger"], named(checkpoint.tensors, "ledger/"))
            self.accuracy, self.best, self.closed = state["accuracy"], state["best_accuracy"], state["closed"]
            self.center.restore(checkpoint.tensors, state["center"], pool)
        except KeyError as error:
            raise RecordError(
                f"{self.record.folder}: its checkpoint has no {error}: another version of leanfleet made it; begin anew"
            ) from error

    def _ended(self) -> str | None:
        if self.round - self.closed >= self.experiment.experiment.rounds:
            return "rounds"
        return self.experiment.budget.used_up(self.ledger)

    def _play_round(self, pool: Workers | None) -> None:
        told = self.center.play(pool, self.round, self.ledger, self._show)
        self.round += 1
        self._reckon_energy()
        event: dict[str, Any] = {"round": self.round}
        every = self.experiment.experiment.eval_every
        if self.round % every == 0 or self._ended():
            found = self.center.evaluate(pool)
            self.accuracy = float(found["accuracy"])
            self.best = max(self.accuracy, self.best or 0.0)
            event |= found
        self._pass_wall_time()
        self.record.event(**event, **self.ledger.totals(), **told)
        self._checkpoint()
        self._show(0.0)

    def _book_end(self, added: dict[str, Any]) -> None:
        """Keep what changed after the last round: the networks that the summary judges need a checkpoint."""
        self.accuracy = float(added["accuracy"])
        self.best = max(self.accuracy, self.best or 0.0)
        self._reckon_energy()
        self.round += 1
        self.closed = True
        self.record.event(**{"round": self.round, **added, **self.ledger.totals()})
        self._checkpoint()

    def _reckon_energy(self) -> None:
        joules = self._joules()
        self.ledger.energy_joules = joules and joules.total

    def _joules(self) -> Joules | None:
        energy, ledger = self.experiment.energy, self.ledger
        if energy is None:
            return None
        sent, received = ledger.bytes_up, ledger.bytes_down
        return energy.joules(macs=ledger.macs_total, bytes_sent=sent, bytes_received=received)

    def _checkpoint(self) -> None:
        tensors = self.center.tensors() | {f"ledger/{name}": t for name, t in self.ledger.tensors().items()}
        state = {
            "ledger": self.ledger.state(),
            "accuracy": self.accuracy,
            "best_accuracy": self.best,
            "workers": self.workers,
            "device": self.device,
            "closed": self.closed,
            "center": self.center.state(),
        }
        self.record.checkpoint(self.round, tensors, state)

    def _pass_wall_time(self) -> None:
        now = time.monotonic()
        self.ledger.seconds_wall += now - self._clock
        self._clock = now

    def _show(self, share: float) -> None:
        rounds, ledger = self.experiment.experiment.rounds, self.ledger
        seconds, late = ledger.seconds_virtual, ledger.late_share
        self.watch(Progress(self.record.name, self.round, rounds, share, self.accuracy, seconds, late))

    def _summary(self) -> dict[str, Any]:
        joules = self._joules()
        return {
            "method": self.experiment.method.name,
            "family": self.experiment.method.family,
            "seed": self.experiment.experiment.seed,
            "rounds": self.round - self.closed,
            "ended_by": self._ended(),
            "accuracy": self.accuracy,
            "best_accuracy": self.best,
            **self.ledger.totals(),
            "devices": self.job.devices,
            "workers": self.workers,
            "data_note": self.job.data.note or None,
            "energy": joules and joules._asdict(),
            "notes": notes(self.job),
        }


def notes(job: AnyJob) -> list[str]:
    """Return what a user should hear of a run beside its numbers: a line each."""
    found, energy = job.method.warnings() if isinstance(job, GossipJob) else [], job.experiment.energy
    if energy is not None:
        found.append(
            f"energy is assumed, not measured: {energy.joules_per_mac:g} J a MAC, {energy.joules_per_byte_sent:g} J a "
            f"byte sent, {energy.joules_per_byte_received:g} J a byte received"
        )
    return found


def say_notes(job: AnyJob) -> None:
    """Print the notes of a run that begins or goes on."""
    for line in notes(job):
        print(f"note: {line}", file=sys.stderr)
