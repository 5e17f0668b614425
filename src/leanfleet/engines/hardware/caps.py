"""What a device's owner allows: a share of its processor, memory, only while charging; cgroup limits count too."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from leanfleet.errors import UserError

_CGROUP, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Caps:
    """Limits of one device.

    Attributes:
        threads: Threads torch may use.
        duty: Share of the time in which they may be busy.
        memory_bytes: Most memory for data of this process; None is no limit.
        only_charging: Train only while the device is on mains.
    """

    threads: int = 1
    duty: float = 1.0
    memory_bytes: int | None = None
    only_charging: bool = False

    @classmethod
    def of(cls, config: Mapping[str, object], root: Path = _CGROUP) -> Caps:
        """Return the limits from a node's configuration and its cgroup.

        Args:
            config: `cpu-share` (0 to 1), `memory-mb`, `only-charging`; all may be missing.
            root: Where cgroups are mounted.

        Raises:
            UserError: A limit is none.
        """
        share, megabytes = config.get("cpu-share", 1.0), config.get("memory-mb", 0)
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise UserError(f"node configuration: cpu-share = {share!r}: give a number above 0, at most 1")
        if not isinstance(megabytes, int | float) or not 0 <= megabytes < math.inf:
            raise UserError(f"node configuration: memory-mb = {megabytes!r}: give megabytes, 0 for no limit")
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        quota, memory = _cgroup(root)
        cores = min(float(affinity), quota) * share
        threads = max(1, int(cores))
        limits = [limit for limit in (int(megabytes * 2**20), memory) if limit]
        duty = min(1.0, cores / threads)
        return cls(threads, duty, min(limits, default=None), config.get("only-charging") is True)

    def apply(self) -> None:
        """Hold this process to threads and memory: more memory than allowed is then an error, not a kill.

        Where it holds more already there is no room to train, and what says so needs a little itself.
        """
        torch.set_num_threads(self.threads)
        if self.memory_bytes is not None and sys.platform == "linux" and _held()[0] < self.memory_bytes:
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            most = self.memory_bytes if hard == resource.RLIM_INFINITY else min(self.memory_bytes, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))

    def room(self, root: Path = _CGROUP) -> float:
        """Return the bytes of memory that training may take now: the least of what owner, cgroup and machine allow.

        Args:
            root: Where cgroups are mounted.
        """
        import psutil

        data, resident = _held_at_first()
        # What training has taken in this process before it may take again: the allocator has kept it.
        kept = max(0, _held()[1] - resident)
        owner = math.inf if self.memory_bytes is None else self.memory_bytes - data
        return min(owner, kept + min(float(psutil.virtual_memory().available), _free(root)))

    def paused(self) -> bool:
        """Return whether the device may not train now."""
        if not self.only_charging:
            return False
        import psutil

        battery = psutil.sensors_battery()
        # None is a device without a battery; so is a platform that cannot tell.
        return battery is not None and battery.power_plugged is False


def _held() -> tuple[int, int]:
    """Return the bytes of data and of resident memory that this process has."""
    import psutil

    mine = psutil.Process().memory_info()
    # Only Linux tells data apart, and only there is it limited.
    return getattr(mine, "data", mine.rss), mine.rss


@cache
def _held_at_first() -> tuple[int, int]:
    """Return what this process had when it was first asked."""
    return _held()


def _cgroup(root: Path) -> tuple[float, int | None]:
    """Return cores and bytes of memory that this process's cgroup (version 2) and those above it allow."""
    cores, memory = math.inf, list[int]()
    for folder in _folders(root):
        quota = _words(folder / "cpu.max")
        if len(quota) == 2 and quota[0].isdigit():
            cores = min(cores, int(quota[0]) / int(quota[1]))
        memory += _numbers(folder / "memory.max")
    return cores, min(memory, default=None)


def _free(root: Path) -> float:
    """Return the bytes that all processes of this one's cgroup, and of those above it, may still take."""
    found = math.inf
    for folder in _folders(root):
        for most in _numbers(folder / "memory.max"):
            stat = _words(folder / "memory.stat")
            # The kernel drops copies of files before it lets anybody run out of memory.
            files = dict(zip(stat[::2], stat[1::2], strict=False)).get("inactive_file", "0")
            found = min(found, most - sum(_numbers(folder / "memory.current")) + int(files))
    return found


def _folders(root: Path) -> Iterator[Path]:
    """Return the folder of this process's cgroup and those above it."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    for folder in (root / own, *(root / own).parents):
        if not folder.is_relative_to(root):
            return
        yield folder


def _numbers(path: Path) -> list[int]:
    return [int(word) for word in _words(path) if word.isdigit()]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []
