"""How much memory a training step takes at most: its tensors are counted, none is made."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from leanfleet.profiling.workload import Workload
from leanfleet.subnet import Kept

# Seen on x86 (oneDNN, glibc), after three steps of mini-batches of 32: DenseNet-BC-40 takes 453 MB where 259 are
# counted, the FEMNIST network 19.5 where 11.7 are.
_ON_TOP = 1.75


def peak_bytes(work: Workload, kept: Kept) -> int:
    """Return an estimate of the most bytes that a training step adds to what a process takes.

    Counted are copies of the network, its momentum, the packed part, the mini-batch, activations and gradients, on
    torch's device without numbers, so no more memory is used than Python's own. What kernels take for themselves and
    what the allocator cannot use again is a share on top (Rapp et al. 2022 leave memory open; our decision).

    Args:
        work: What a step is.
        kept: What of the network is trained.
    """
    try:
        counted = _counted(work, kept, "meta")
    except NotImplementedError:
        # An operation of the user's own that knows no shapes without numbers.
        counted = _counted(work, kept, "cpu")
    return round(_ON_TOP * counted)


def most_bytes(work: Workload) -> int:
    """Return what a step takes at most, whatever it keeps.

    What is kept whole is not copied, so it may be the network that lacks a little of everything.
    """
    plan = work.plan
    nearly = plan.windows([max(group.cells, group.channels - group.cells) for group in plan.groups])
    return max(peak_bytes(work, plan.full), peak_bytes(work, nearly))


def check_room(least: float, room: float) -> None:
    """Check that there is memory for a training step.

    Args:
        least: Bytes that the smallest step takes at most.
        room: Bytes that it may take.

    Raises:
        MemoryError: There is not.
    """
    if least > room:
        needed, free = least / 1e6, max(room, 0.0) / 1e6
        raise MemoryError(f"a training step takes {needed:.1f} MB of memory at least, {free:.1f} MB are free")


def _counted(work: Workload, kept: Kept, device: str) -> int:
    with _Living() as living:
        work.local(device).descend(kept, work.batch(device))
    peak: int = living.peak
    return peak


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages of tensors from their making to their end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, list | tuple) else (out,):
            if isinstance(made, Tensor):
                self._add(made.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        weakref.finalize(storage, self._remove, storage.nbytes())
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _remove(self, size: int) -> None:
        self.now -= size
