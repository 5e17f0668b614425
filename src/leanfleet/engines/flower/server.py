"""The server's half of a Flower app: the local engine's loop and books around a fleet of real devices."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from leanfleet.engines.center import Center
from leanfleet.engines.flower.federated import FlowerCenter
from leanfleet.engines.flower.fleet import log
from leanfleet.engines.flower.split import FlowerSplitCenter
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.job import FederatedJob, SplitJob, make_job
from leanfleet.engines.local import begin
from leanfleet.engines.loop import Loop
from leanfleet.engines.staff import Staff
from leanfleet.errors import RecordInUseError
from leanfleet.experiment import Experiment
from leanfleet.experiment import load as load_experiment
from leanfleet.runs import Checkpoint, Run

LOG = "fleet.jsonl"
"""The file of a record that says what happened to whom, a JSON object a line."""

_LETS_GO_SECONDS, _ASKS_SECONDS = 120.0, 2.0


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
    log.setLevel(logging.INFO)
    resumed = Run.open(Path(terms.resume)) if terms.resume else None
    restored = _restored(resumed) if resumed else None
    if resumed is not None and resumed.finished:
        log.info("%s: already finished", resumed.folder)
        return resumed
    experiment = load_experiment(resumed.experiment_file) if resumed else experiment
    terms.check(experiment)
    job = make_job(experiment)
    assert isinstance(job, FederatedJob | SplitJob)
    with resumed or begin(job, Path(terms.runs)) as record, Staff() as staff, _logged(record.folder / LOG):
        log.info("record: %s", record.folder.resolve())
        center: Center = (
            FlowerCenter(job, grid, terms, record.folder)
            if isinstance(job, FederatedJob)
            else FlowerSplitCenter(job, grid, terms, record.folder)
        )
        Loop(record, job, center, 1, lambda progress: None).go(staff.for_job(job, 1), restored)
    return record


def _restored(record: Run) -> Checkpoint | None:
    """Return where an unfinished run stands; a server whose SuperLink has died has some time to notice, and let go."""
    end = time.monotonic() + _LETS_GO_SECONDS
    while not record.finished:
        try:
            return record.restore()
        except RecordInUseError as error:
            if time.monotonic() > end:
                raise
            log.info("%s", error)
            time.sleep(_ASKS_SECONDS)
    return None


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
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
