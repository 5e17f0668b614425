"""Real devices behind a Flower SuperLink: a ServerApp and a ClientApp around any federated method, and AdaSplit.

Flower polls: a message takes seconds and perhaps a cold process, so nothing here needs one for a mini-batch.
"""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from leanfleet.errors import ExperimentError
from leanfleet.experiment import Experiment, load
from leanfleet.split.adasplit import AdaSplitOptions

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

LUT = "lut.json"
"""The file of an app that holds a table of DISTREAL's, for Flower takes along only text."""

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []

_PER_MINI_BATCH: tuple[tuple[str, object, str], ...] = (
    ("selection_window", 1, "set it to the mini-batches that one message may hold, such as 20"),
    ("server_grad", True, "leave it out"),
    ("client_nets", "handover", 'take "private"'),
)
"""AdaSplit's keys and values that cannot live behind a SuperLink, and what to do instead."""


def server_app(folder: Path) -> ServerApp:
    """Return the ServerApp of the app in a folder, which holds `experiment.toml`."""
    from leanfleet.engines.flower.server import app

    return app(experiment_of(folder))


def client_app(folder: Path) -> ClientApp:
    """Return the ClientApp of the app in a folder, which holds `experiment.toml`."""
    experiment = experiment_of(folder)
    if experiment.method.family == "split":
        from leanfleet.engines.flower.split_client import app as split_app

        return split_app(experiment)
    from leanfleet.engines.flower.client import app

    return app(experiment)


def experiment_of(folder: Path) -> Experiment:
    """Return the experiment of an app.

    Raises:
        ExperimentError: Its method cannot live behind a SuperLink.
    """
    overrides = []
    if (folder / LUT).exists():
        # Gone when this process ends: it may be one of many, one a message.
        _FOLDERS.append(tempfile.TemporaryDirectory())
        table = Path(_FOLDERS[-1].name) / "table.lut"
        table.write_bytes(base64.b64decode(json.loads((folder / LUT).read_text())["base64"]))
        overrides = [f"method.lut={json.dumps(str(table))}"]
    experiment = load(folder / "experiment.toml", overrides)
    check(experiment)
    return experiment


def check(experiment: Experiment) -> None:
    """Check that a method can live behind a SuperLink.

    Raises:
        ExperimentError: It needs a message for every mini-batch.
    """
    method, options = experiment.method, experiment.options
    if method.family == "federated":
        return
    if not isinstance(options, AdaSplitOptions):
        raise ExperimentError(
            f"[method] name = '{method.name}': needs messages within a round, and Flower polls every 3 seconds; "
            "take a federated method or adasplit, or run it with `leanfleet run`"
        )
    for key, wrong, instead in _PER_MINI_BATCH:
        if getattr(options, key) == wrong:
            raise ExperimentError(
                f"[method] {key} = {json.dumps(wrong)}: needs a message for every mini-batch, and Flower polls every "
                f"3 seconds; {instead}, or run it with `leanfleet run`"
            )
