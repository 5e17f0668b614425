"""The server's half of a Flower app: the local engine's loop and books around a fleet of real devices."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from leanfleet.engines.center import Show
from leanfleet.engines.devices import Outcome
from leanfleet.engines.federated import FederatedCenter
from leanfleet.engines.flower.fleet import Answer, Fleet, Node, Sent
from leanfleet.engines.flower.messages import TRAIN, Result, Task, payload_of
from leanfleet.engines.flower.updates import Assigned, accept, check_macs, fold_in
from leanfleet.engines.job import FederatedJob, federated_job
from leanfleet.engines.local import begin
from leanfleet.engines.loop import Loop
from leanfleet.engines.staff import Staff
from leanfleet.errors import ExperimentError, LeanfleetError, WireError
from leanfleet.experiment import Experiment
from leanfleet.experiment import load as load_experiment
from leanfleet.federated import Report
from leanfleet.ledger import Ledger
from leanfleet.randomness import numpy_generator, torch_generator
from leanfleet.runs import Run
from leanfleet.storage import write_json
from leanfleet.wire import encode
from leanfleet.workers import Workers

log = logging.getLogger("leanfleet.fleet")

STATUS = "fleet.json"
"""The file of a record that says what every device is doing."""

LOG = "fleet.jsonl"
"""The file of a record that says what happened to whom, a JSON object a line."""

_PATIENCE_ROUNDS = 3.0


@dataclass(frozen=True)
class Terms:
    """The app's `[tool.flwr.app.config]`: what the experiment itself does not say.

    Attributes:
        runs: Folder of all records; relative to where the SuperLink was started.
        resume: The record to go on with; empty begins one.
        clock: "real", or "virtual" for devices that only pretend to be slow.
        min_devices: Devices that must be free before a round begins; 0 is as many as a round selects.
        min_reports: Updates without which a round does not end at its deadline but waits for more.
        stale_weight: Weight of an update that is a round late, its square for two, ...; 0 discards it.
        clip_norm: Largest norm of a device's change; 0 clips nothing.
        most_samples: Most samples in a round of a device with data of its own; 0 is the largest share dealt out.
        wait_seconds: How long to wait for devices to come, or to come back.
        poll_seconds: Time between two looks for answers.
    """

    runs: str = "runs"
    resume: str = ""
    clock: str = "real"
    min_devices: int = 0
    min_reports: int = 1
    stale_weight: float = 0.0
    clip_norm: float = 0.0
    most_samples: int = 0
    wait_seconds: float = 600.0
    poll_seconds: float = 1.0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Terms:
        """Return the terms from a run's configuration, whose keys have dashes.

        Raises:
            ExperimentError: A value is of another type, or makes no sense.
        """
        known = {name.replace("_", "-"): name for name in cls.__dataclass_fields__}
        terms = cls(**{known[key]: value for key, value in config.items() if key in known})
        for key, name in known.items():
            value, usual = getattr(terms, name), getattr(cls, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
            if not (isinstance(value, str) if isinstance(usual, str) else number):
                raise ExperimentError(f"run configuration: {key} = {value!r} makes no sense")
        if terms.clock not in ("real", "virtual"):
            raise ExperimentError(f"run configuration: clock = '{terms.clock}': say real or virtual")
        return terms


def app(experiment: Experiment) -> ServerApp:
    """Return the ServerApp of an experiment; it writes a record as `leanfleet run` does."""
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        # Not the root logger: Flower sends that one's lines to the SuperLink, and logs that it does.
        log.addHandler(handler)
        serve(grid, experiment, Terms.of(context.run_config))

    return made


def serve(grid: Grid, experiment: Experiment, terms: Terms) -> Run:
    """Play all rounds with the devices behind a grid, or those that a record still lacks; return the record."""
    resumed = Run.open(Path(terms.resume)) if terms.resume else None
    if resumed is not None and resumed.finished:
        log.info("%s: already finished", resumed.folder)
        return resumed
    restored = resumed.restore() if resumed else None
    job = federated_job(load_experiment(resumed.experiment_file) if resumed else experiment)
    with resumed or begin(job, Path(terms.runs)) as record, Staff() as staff, _logged(record.folder / LOG):
        log.info("record: %s", record.folder.resolve())
        center = FlowerCenter(job, grid, terms, record.folder)
        Loop(record, job, center, 1, lambda progress: None).go(staff.for_job(job, 1), restored)
    return record


class _JsonLines(logging.Formatter):
    """What is said, and whom it is about, for programs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        about = getattr(record, "about", {})
        told = {"at": record.created, "level": record.levelname, "told": record.getMessage()}
        return json.dumps({**told, **about})


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class FlowerCenter(FederatedCenter):
    """The server of one run on real devices; method, evaluation and books are those of the simulation."""

    def __init__(self, job: FederatedJob, grid: Grid, terms: Terms, folder: Path) -> None:
        super().__init__(job, 1)
        self.terms, self._folder = terms, folder
        samples = {device: job.samples(device) for device in range(len(job.parts))}
        most = terms.most_samples or max(samples.values())
        patience = max(_PATIENCE_ROUNDS * job.fleet.round_seconds, 60.0)
        self.fleet = Fleet(grid, samples, most, patience)
        self._virtual = terms.clock == "virtual"
        self._told: dict[str, Any] = {}

    def play(self, pool: Workers, round: int, ledger: Ledger, show: Show) -> dict[str, Any]:
        """Send tasks to free devices, take what comes until the deadline, and average it."""
        started_virtually = ledger.seconds_virtual
        tardy = self._gather(round)
        began = time.monotonic()
        open_ = _Round(self, round)
        open_.take_all(tardy)
        for place, (device, node) in enumerate(self._chosen(round).items()):
            open_.assign(node, device, place, started_virtually)
        while not open_.over(time.monotonic() - began):
            self._tell(round)
            open_.take_all(self.fleet.poll())
            if not open_.over(time.monotonic() - began):
                time.sleep(self.terms.poll_seconds)
        self.params = self.job.method.finish(self.params, open_.total)
        outcomes = open_.outcomes()
        self._book(outcomes, round, ledger)
        for late in open_.late:
            # They have taken part in an earlier round; what they spent since is in no book yet.
            ledger.record(late.device, macs=late.macs, bytes_up=late.bytes_up, times=0)
        if not self._virtual:
            ledger.seconds_virtual = started_virtually + time.monotonic() - began
        self._tell(round)
        return {
            "available_macs": sum(outcome.available_macs for outcome in outcomes),
            "rejected": [f"device {o.device}: {o.rejected}" for o in outcomes if o.rejected],
            "silent": open_.silent(),
            "late": [late.device for late in open_.late],
        }

    def _gather(self, round: int) -> list[Answer]:
        """Wait until enough devices are free; return what is answered meanwhile, too late for its round."""
        wanted = self.terms.min_devices or self.job.fleet.per_round
        end, told, tardy = time.monotonic() + self.terms.wait_seconds, -1, list[Answer]()
        while True:
            self.fleet.greet()
            tardy += self.fleet.poll()
            there = len(self.fleet.free())
            if there >= wanted:
                return tardy
            if there != told:
                log.info("round %d: %d of %d devices are there", round + 1, there, wanted)
            if time.monotonic() > end:
                came = f"round {round + 1}: {there} of {wanted} devices came"
                raise LeanfleetError(f"{came}; the record can be resumed")
            told = there
            self._tell(round)
            time.sleep(self.terms.poll_seconds)

    def _chosen(self, round: int) -> dict[int, Node]:
        """Choose among free devices as the simulation does; the same ones if all are free."""
        free = self.fleet.free()
        devices, seed = list(free), self.job.experiment.experiment.seed
        count = min(self.job.fleet.per_round, len(devices))
        drawn = numpy_generator(seed, round, "devices").choice(len(devices), count, replace=False)
        return {devices[i]: free[devices[i]] for i in sorted(drawn.tolist())}

    def _tell(self, round: int) -> None:
        """Write what every device is doing, for those who watch."""
        devices = {str(node.device): node.shown() for node in self.fleet.nodes.values() if node.samples}
        told = {"round": round + 1, "devices": devices}
        if told != self._told:
            write_json(self._folder / STATUS, told)
            self._told = told


class _Round:
    """One round while it is open."""

    def __init__(self, center: FlowerCenter, round: int) -> None:
        self._center, self._round = center, round
        self._method, self._terms = center.job.method, center.terms
        self.total = self._method.empty(center.params)
        self.late: list[Outcome] = []
        self._tasks: dict[int, tuple[Node, Assigned]] = {}
        self._outcomes: dict[int, Outcome] = {}

    def assign(self, node: Node, device: int, place: int, start: float) -> None:
        """Send a device its task."""
        job, whole = self._center.job, self._center.job.fleet.round_seconds
        virtual = self._terms.clock == "virtual"
        # Never less than half: a device that was out of reach once would never get a chance to show better.
        seconds = whole if virtual else whole - min(node.allowance, whole / 2)
        # Methods reckon with whole rounds, so a shorter one is a slower device to them.
        rate = job.means(device).rate(start) if virtual else node.rate_macs_per_s * seconds / whole
        report = Report(node.samples, rate, self._round * job.fleet.per_round + place)
        rng = torch_generator(job.experiment.experiment.seed, self._round, device, "assign")
        message = self._method.assign(self._center.params, report, self._round, rng)
        down = encode(message)
        task = Assigned(self._round, report, message, len(down))
        self._tasks[device] = node, task
        node.state = "training"
        asked = Task(self._round, start if virtual else 0.0, seconds)
        self._center.fleet.send(node.id, TRAIN, asked.packed(down), self._round + 1, task)

    def over(self, elapsed: float) -> bool:
        """Return whether the round has ended: all have answered, or its time is up and enough have."""
        if all(
            device in self._outcomes or node.state != "training" for device, (node, _) in self._tasks.items()
        ):
            return True
        waits = self._terms.clock == "virtual" or not self._method.deadline
        reports = sum(outcome.bytes_up > 0 and not outcome.rejected for outcome in self._outcomes.values())
        return (
            elapsed >= self._center.job.fleet.round_seconds
            and not waits
            and reports >= self._terms.min_reports
        )

    def take_all(self, answers: Sequence[Answer]) -> None:
        """Take answers, in time or not; what is wrong with one costs nothing but its own work."""
        for node, sent, content in answers:
            self._take(node, sent, content)

    def _take(self, node: Node, sent: Sent, content: RecordDict) -> None:
        task: Assigned = sent.about
        late = task.round != self._round
        try:
            result, up = Result.read(content), payload_of(content)
            self._center.fleet.learn(node, sent, result.seconds, result.rate_macs_per_s)
            check_macs(self._method, task.report, result.macs)
        except WireError as error:
            result, up, rejected = Result(0.0, 0.0, True, 0.0, 0.0, 0.0, 0.0, "garbage"), b"", str(error)
        else:
            rejected = self._add(task, up, late) if up else ""
        if rejected:
            about = {"device": node.device, "round": task.round + 1, "rejected": rejected}
            log.warning("device %d: left out: %s", node.device, rejected, extra={"about": about})
        node.last = {
            "macs": result.macs,
            "share": result.share,
            "bytes_up": len(up),
            "bytes_down": task.bytes_down,
        }
        node.state = "late" if late else "rejected" if rejected else result.state
        outcome = Outcome(
            node.device, result.macs, result.available_macs, task.bytes_down, len(up),
            result.late, result.finished_at, rejected,
        )  # fmt: skip
        if late:
            self.late.append(outcome)
        else:
            self._outcomes[node.device] = outcome

    def _add(self, task: Assigned, up: bytes, late: bool) -> str:
        if late and not self._terms.stale_weight:
            return "its round is over"
        params, clip = self._center.params, self._terms.clip_norm
        if not late:
            return accept(self._method, params, self.total, task, up, clip)
        own = self._method.empty(params)
        if rejected := accept(self._method, params, own, task, up, clip):
            return rejected
        fold_in(self.total, own, self._terms.stale_weight ** (self._round - task.round))
        return ""

    def silent(self) -> list[int]:
        """Return the devices that have not answered."""
        return [device for device in self._tasks if device not in self._outcomes]

    def outcomes(self) -> list[Outcome]:
        """Return what every device's round came to; those that have not answered were late."""
        missing = {
            device: Outcome(device, 0.0, 0.0, self._tasks[device][1].bytes_down, 0, True, 0.0)
            for device in self.silent()
        }
        for device in missing:
            about = {"device": device, "round": self._round + 1}
            log.warning(
                "round %d: device %d has not reported", self._round + 1, device, extra={"about": about}
            )
        return [found for _, found in sorted({**self._outcomes, **missing}.items())]
