"""What a device's owner allows."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from leanfleet.engines.hardware import caps
from leanfleet.engines.hardware.caps import Caps
from leanfleet.engines.local import default_workers
from leanfleet.errors import UserError


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """A cgroup of our own with one above it."""
    own = tmp_path / "slice" / "unit"
    own.mkdir(parents=True)
    listing = tmp_path / "listing"
    listing.write_text("0::/slice/unit\n")
    monkeypatch.setattr(caps, "_OWN", listing)
    return own


def test_nothing_said_is_no_limit(cgroup, tmp_path):
    assert Caps.of({}, tmp_path) == Caps(default_workers())


@pytest.mark.parametrize(
    ("quota", "share", "threads", "duty"),
    [("50000 100000", 1.0, 1, 0.5), ("100000 100000", 0.25, 1, 0.25), ("max 100000", 1e-3, 1, None)],
)
def test_shares_and_quotas_become_threads_and_rest(cgroup, tmp_path, quota, share, threads, duty):
    (cgroup / "cpu.max").write_text(quota)
    found = Caps.of({"cpu-share": share}, tmp_path)
    assert found.threads == threads
    assert found.duty == pytest.approx(duty or default_workers() * share)


def test_the_tightest_limit_counts_wherever_it_stands(cgroup, tmp_path):
    (cgroup / "memory.max").write_text("max")
    (cgroup.parent / "memory.max").write_text(f"{300 * 2**20}")
    assert Caps.of({}, tmp_path).memory_bytes == 300 * 2**20
    assert Caps.of({"memory-mb": 100}, tmp_path).memory_bytes == 100 * 2**20
    assert Caps.of({"memory-mb": 500}, tmp_path).memory_bytes == 300 * 2**20


def test_without_cgroups_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(caps, "_OWN", tmp_path / "none")
    assert caps._cgroup(tmp_path) == (math.inf, None)


@pytest.fixture
def process(monkeypatch):
    """What this process holds, and the machine has left: bytes of data, resident, available."""
    held = SimpleNamespace(data=300, rss=400, available=10_000)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: held))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: held)
    caps._held_at_first.cache_clear()
    yield held
    caps._held_at_first.cache_clear()


def test_room_is_the_least_of_what_owner_cgroup_and_machine_allow(cgroup, tmp_path, process):
    assert Caps().room(tmp_path) == 10_000
    assert Caps(memory_bytes=5_000).room(tmp_path) == 5_000 - 300
    (cgroup.parent / "memory.max").write_text("4000")
    (cgroup.parent / "memory.current").write_text("3000")
    assert Caps(memory_bytes=5_000).room(tmp_path) == 1_000
    (cgroup.parent / "memory.stat").write_text("anon 2500\ninactive_file 500\n")
    assert Caps(memory_bytes=5_000).room(tmp_path) == 1_500, "files can be read again"
    process.available = 700
    assert Caps(memory_bytes=5_000).room(tmp_path) == 700
    assert Caps(memory_bytes=100).room(tmp_path) < 0


def test_what_training_has_left_behind_is_room_for_training(cgroup, tmp_path, process):
    """Our allocator keeps the memory of a step for the next one, and a process may live on."""
    before = Caps(memory_bytes=5_000).room(tmp_path), Caps().room(tmp_path)
    process.rss, process.data, process.available = 1_400, 1_300, 9_000
    assert (Caps(memory_bytes=5_000).room(tmp_path), Caps().room(tmp_path)) == before


def test_a_process_over_its_limit_can_still_say_so(monkeypatch, process):
    monkeypatch.setattr(
        caps.resource, "setrlimit", lambda *given: pytest.fail("nothing could be said any more")
    )
    Caps(torch.get_num_threads(), memory_bytes=200).apply()


@pytest.mark.parametrize(
    "config",
    [{"cpu-share": 0}, {"cpu-share": 2.0}, {"cpu-share": "half"}, {"memory-mb": -1}, {"memory-mb": "1G"}],
)
def test_a_limit_that_is_none_is_refused(config):
    with pytest.raises(UserError, match=rf"node configuration: {next(iter(config))}"):
        Caps.of(config)


@pytest.mark.parametrize(
    ("battery", "paused"),
    [
        (None, False),
        (SimpleNamespace(power_plugged=True), False),
        (SimpleNamespace(power_plugged=False), True),
    ],
)
def test_only_on_mains(monkeypatch, battery, paused):
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert Caps(only_charging=True).paused() is paused
    assert Caps().paused() is False


def test_threads_are_set():
    before = torch.get_num_threads()
    try:
        Caps(threads=before + 1).apply()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_more_memory_than_allowed_is_an_error_and_no_kill():
    code = (
        "from leanfleet.engines.hardware.caps import Caps; import torch\n"
        "Caps(memory_bytes=2**30).apply()\n"
        "try: torch.ones(2**29)\n"
        "except RuntimeError as error: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr
