"""What `run` and `resume` do as one process of a gossip fleet that torchrun has started."""

from __future__ import annotations

import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from leanfleet.console import Display
from leanfleet.errors import UserError

if TYPE_CHECKING:
    from leanfleet.experiment import Experiment


def check(workers: int | None, device: str | None) -> None:
    """Check that nobody asks for what every process of this engine decides for itself.

    Raises:
        UserError: Somebody does.
    """
    if workers is not None:
        raise UserError(
            "--workers: --engine peers has one process a node, as many as torchrun starts; leave it out"
        )
    if device not in (None, "cpu"):
        raise UserError(f"--device {device}: --engine peers computes on the CPU; leave it out")


def run(experiment: Experiment, root: Path) -> Path | None:
    """Run an experiment as this rank's node; return the record's folder, on rank 0 alone."""
    from leanfleet.engines import peers

    with _PeersDisplay(root) if speaks() else nullcontext() as display:
        record = peers.run(experiment, root=root, watch=display or _silent)
    return record.folder if speaks() else None


def resume(folder: Path) -> Path | None:
    """Go on with a run as this rank's node; return the record's folder, on rank 0 alone."""
    from leanfleet.engines import peers

    with _PeersDisplay(folder.parent, resumes=folder) if speaks() else nullcontext() as display:
        peers.resume(folder, watch=display or _silent)
    return folder if speaks() else None


class _PeersDisplay(Display):
    """Tells how to go on with as many processes."""

    def _command(self) -> str:
        ranks = os.environ.get("WORLD_SIZE", "N")
        run = shlex.quote(str(self._resumes))
        return f"torchrun --nproc-per-node {ranks} -m leanfleet resume {run} --engine peers"


def speaks() -> bool:
    """Of several processes on one terminal one tells how it goes."""
    return os.environ.get("RANK", "0") == "0"


def _silent(progress: object) -> None:
    pass
