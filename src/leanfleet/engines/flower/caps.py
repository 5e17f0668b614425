"""What a device's owner allows: a share of its processor, memory, only while charging; cgroup limits count too."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
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
        """Hold this process to threads and memory: more memory than allowed is then an error, not a kill."""
        torch.set_num_threads(self.threads)
        if self.memory_bytes is not None and sys.platform == "linux":
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            most = self.memory_bytes if hard == resource.RLIM_INFINITY else min(self.memory_bytes, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))

    def paused(self) -> bool:
        """Return whether the device may not train now."""
        if not self.only_charging:
            return False
        import psutil

        battery = psutil.sensors_battery()
        # None is a device without a battery; so is a platform that cannot tell.
        return battery is not None and battery.power_plugged is False


def _cgroup(root: Path) -> tuple[float, int | None]:
    """Return cores and bytes of memory that this process's cgroup (version 2) and those above it allow."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf, None
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    cores, memory = math.inf, list[int]()
    for folder in (root / own, *(root / own).parents):
        if not folder.is_relative_to(root):
            break
        quota = _words(folder / "cpu.max")
        if len(quota) == 2 and quota[0].isdigit():
            cores = min(cores, int(quota[0]) / int(quota[1]))
        memory += [int(word) for word in _words(folder / "memory.max") if word.isdigit()]
    return cores, min(memory, default=None)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []
