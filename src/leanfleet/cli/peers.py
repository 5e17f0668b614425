"""What `run` and `resume` do as one process of a gossip fleet that torchrun has started."""

from __future__ import annotations

import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from leanfleet.console import Display

if TYPE_CHECKING:
    from leanfleet.experiment import Experiment


def run(experiment: Experiment, root: Path) -> Path | None:
    """Run an experiment as this rank's node; return the record's folder, on rank 0 alone."""
    from leanfleet.engines import peers

    with _PeersDisplay(root) if _speaks() else nullcontext() as display:
        record = peers.run(experiment, root=root, watch=display or _silent)
    return record.folder if _speaks() else None


def resume(folder: Path) -> Path | None:
    """Go on with a run as this rank's node; return the record's folder, on rank 0 alone."""
    from leanfleet.engines import peers

    with _PeersDisplay(folder.parent, resumes=folder) if _speaks() else nullcontext() as display:
        peers.resume(folder, watch=display or _silent)
    return folder if _speaks() else None


class _PeersDisplay(Display):
    """Tells how to go on with as many processes."""

    def _command(self) -> str:
        ranks = os.environ.get("WORLD_SIZE", "N")
        run = shlex.quote(str(self._resumes))
        return f"torchrun --nproc-per-node {ranks} -m leanfleet resume {run} --engine peers"


def _speaks() -> bool:
    """Of several processes on one terminal one tells how it goes."""
    return os.environ.get("RANK", "0") == "0"


def _silent(progress: object) -> None:
    pass
