"""One real device, one core, and a load that comes and goes in mid-round: who still reports in time?

    python benchmarks/live_adaptation.py --rounds 10 --seconds 12

The code of a Flower device (`leanfleet.engines.flower`) trains without Flower around it. Busy processes pinned to
the same core are let go and stopped again, at the same times for every method. Prints a Markdown table and writes it to
docs/results/live-adaptation/, with all numbers and a picture: measured rate, vector in use, and time left at the end of
every round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

# As on a device: read when the first convolution runs.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")

import torch

from leanfleet.engines.describe import machine
from leanfleet.engines.devices import add_update, make_pacer, take_part
from leanfleet.engines.hardware.caps import Caps
from leanfleet.engines.hardware.measuring import MeasuredClock, MeasuredPacer, Profile, calibrate
from leanfleet.engines.job import FederatedJob, federated_job
from leanfleet.experiment import loads
from leanfleet.federated import Report
from leanfleet.randomness import torch_generator
from leanfleet.storage import write_text
from leanfleet.wire import encode

TOML = """
[network]
name = "digits-cnn"
[fleet]
devices = 1
per_round = 1
round_seconds = {seconds}
[training]
batch_size = 32
epochs = {epochs}
[method]
name = "{method}"
"""

# On an idle device the whole network takes so much of a round.
FULL_SHARE = 0.75
# Load is off and on for so much of a round in turn: no multiple of it is a round.
PHASE = 0.4
_WARM_UP_EPOCHS = 5
_PROBES = 3
_SETTLED = 0.5
# Steps are milliseconds: so many are one in the numbers that are kept.
EVERY = 10

OUTPUT = Path(__file__).parent.parent / "docs" / "results" / "live-adaptation"
_HEAD = "| busy processes | method | updates in time | MACs in them | latest |\n|---:|---|---:|---:|---:|"


class Load:
    """Processes that keep a core busy, switched on and off on a fixed schedule."""

    def __init__(self, count: int, phase_seconds: float) -> None:
        self._phase, self._ended = phase_seconds, threading.Event()
        spin = [sys.executable, "-c", "while True: pass"]
        self._busy = [subprocess.Popen(spin) for _ in range(count)]
        self._signal(signal.SIGSTOP)
        self.switched: list[float] = []

    def __enter__(self) -> Load:
        self.start = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        for process in self._busy:
            process.kill()
            process.wait()

    def _run(self) -> None:
        on = False
        while not self._ended.wait(self.start + (len(self.switched) + 1) * self._phase - time.monotonic()):
            on = not on
            self._signal(signal.SIGCONT if on else signal.SIGSTOP)
            self.switched.append(time.monotonic() - self.start)

    def _signal(self, number: int) -> None:
        for process in self._busy:
            process.send_signal(number)


class TracedPacer(MeasuredPacer):
    """Notes when each step ended, the whole network's rate as measured by then, and what the step kept."""

    def __init__(self, clock: MeasuredClock, **terms: Any) -> None:
        super().__init__(clock, **terms)
        self.steps: list[tuple[float, float, list[int]]] = []

    def spend(self, macs: float, samples: int, kept: Mapping[str, Sized] | None = None) -> bool:
        in_time = super().spend(macs, samples, kept)
        counts = [len(ids) for ids in self.kept.values()]
        self.steps.append((self._clock.now(), self._clock.rate(), counts))
        return in_time


@dataclass
class Seen:
    """What one method did.

    Attributes:
        method: Its name.
        switched: Seconds at which the load was switched, first on.
        groups: (name, channels) of what can be dropped.
        steps: (second, MAC/s, channels kept of every group) of every step.
        left: (second of the round's start, seconds left at its end, whether an update arrived).
        macs: Training MACs in updates that arrived.
    """

    method: str
    groups: list[tuple[str, int]]
    switched: list[float] = field(default_factory=list)
    steps: list[tuple[float, float, list[int]]] = field(default_factory=list)
    left: list[tuple[float, float, bool]] = field(default_factory=list)
    macs: float = 0.0


def warmed_up(job: FederatedJob) -> Profile:
    """Return what a device knows of itself after some epochs on an idle core: steps are quicker than the first ones."""
    profile, method = calibrate(job), job.method
    params = method.begin({name: p.detach().clone() for name, p in job.net.named_parameters()})
    report = Report(job.samples(0), profile.whole_rate, 0)
    assigned = method.assign(params, report, 0, torch_generator(0, "warm-up"))
    clock = MeasuredClock(profile, Caps(), time.monotonic())
    pacer = make_pacer(job, clock, 0.0, math.inf, job.samples(0), MeasuredPacer)
    take_part(job, 0, 0, encode(assigned), pacer)
    return clock.profile


def play(job: FederatedJob, profile: Profile, rounds: int, busy: int) -> Seen:
    """Let the device train for some rounds under load."""
    method, seconds, samples = job.method, job.fleet.round_seconds, job.samples(0)
    params = method.begin({name: p.detach().clone() for name, p in job.net.named_parameters()})
    seen = Seen(method.name, [(group.name, group.channels) for group in method.plan.groups])
    with Load(busy, PHASE * seconds) as load:
        for number in range(rounds):
            report = Report(samples, profile.whole_rate, number)
            assigned = method.assign(params, report, number, torch_generator(0, number, "assign"))
            arrived = time.monotonic()
            clock = MeasuredClock(profile, Caps(), arrived)
            pacer = make_pacer(job, clock, 0.0, seconds, samples, TracedPacer)
            assert isinstance(pacer, TracedPacer)
            up = take_part(job, 0, number, encode(assigned), pacer)
            now, profile = clock.now(), clock.profile
            total, begun = method.empty(params), arrived - load.start
            in_time = bool(up) and now <= seconds and not add_update(method, total, assigned, report, up)
            if in_time:
                params = method.finish(params, total)
                seen.macs += pacer.macs
            seen.left.append((begun, seconds - now, in_time))
            seen.steps += [(begun + t, rate, kept) for t, rate, kept in pacer.steps]
            time.sleep(max(0.0, arrived + seconds - time.monotonic()))
        seen.switched = load.switched
    return seen


def draw(found: list[Seen], seconds: float, path: Path) -> None:
    """Draw rate, vector and time left, a column a method."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    size = (5 * len(found), 7)
    figure, axes = plt.subplots(3, len(found), sharex=True, sharey="row", squeeze=False, figsize=size)
    for column, seen in enumerate(found):
        rate, vector, left = axes[:, column]
        times = [t for t, _, _ in seen.steps]
        end = seen.left[-1][0] + seconds
        rate.plot(times, [r / 1e9 for _, r, _ in seen.steps], lw=0.8)
        for group, (name, channels) in enumerate(seen.groups):
            vector.plot(times, [kept[group] / channels for _, _, kept in seen.steps], ".", ms=2, label=name)
        colours = ["tab:green" if ok else "tab:red" for _, _, ok in seen.left]
        left.bar(
            [t + seconds / 2 for t, _, _ in seen.left],
            [s for _, s, _ in seen.left],
            seconds * 0.6,
            color=colours,
        )
        late = [t + seconds / 2 for t, _, ok in seen.left if not ok]
        left.plot(late, [0.0] * len(late), "x", color="tab:red", label="late, lost")
        left.axhline(0, color="black", lw=0.8)
        if late:
            left.legend(frameon=False)
        for axis in axes[:, column]:
            for on, off in zip(seen.switched[::2], [*seen.switched[1::2], end], strict=False):
                axis.axvspan(on, off, color="tab:orange", alpha=0.15, lw=0)
        rate.set_title(seen.method)
        vector.set_ylim(0, 1.05)
        left.set_xlabel("seconds")
    for axis, label in zip(
        axes[:, 0],
        ("measured GMAC/s", "chosen: share of channels kept", "seconds left at the end"),
        strict=True,
    ):
        axis.set_ylabel(label)
    axes[1, 0].legend(frameon=False, loc="lower left", markerscale=4)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def make_job(method: str, seconds: float, epochs: int) -> FederatedJob:
    return federated_job(loads(TOML.format(method=method, seconds=seconds, epochs=epochs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", default="distreal,fedavg,federated-dropout")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a round")
    parser.add_argument("--busy", type=int, nargs="+", default=[1, 3], help="competing processes")
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of page, plot and numbers")
    given = parser.parse_args()
    os.sched_setaffinity(0, {given.core})
    torch.set_num_threads(1)
    probe = make_job("fedavg", given.seconds, _WARM_UP_EPOCHS)
    # What disturbs makes it slower, never faster.
    idle = max((warmed_up(probe) for _ in range(_PROBES)), key=lambda profile: profile.whole_rate)
    step = idle.seconds(idle.whole_macs)
    steps = len(probe.parts[0]) / probe.training.batch_size
    epochs = max(1, round(FULL_SHARE * given.seconds / (step * steps)))
    table, methods = [_HEAD], given.methods.split(",")
    print(_HEAD)
    told: dict[str, Any] = {
        "command": f"python benchmarks/live_adaptation.py {' '.join(sys.argv[1:])}".strip(),
        "seconds": given.seconds,
        "idle_macs_per_s": idle.whole_rate,
        "loads": {},
    }
    given.output.mkdir(parents=True, exist_ok=True)
    for busy in given.busy:
        found = list[Seen]()
        for name in methods:
            job = make_job(name, given.seconds, epochs)
            profile = warmed_up(make_job(name, given.seconds, _WARM_UP_EPOCHS))
            found.append(play(job, profile, given.rounds, busy))
            table.append(row(found[-1], busy))
            print(table[-1], flush=True)
        told["loads"][str(busy)] = [told_of(seen) for seen in found]
        draw(found, given.seconds, given.output / f"busy-{busy}.png")
        print(f"plot: {given.output / f'busy-{busy}.png'}", file=sys.stderr)
    about = machine()
    told["machine"] = {name: about[name] for name in ("cpu", "cores", "leanfleet", "python")}
    told["machine"]["torch"] = about["packages"]["torch"]
    write_text(given.output / "live.json", json.dumps(told))
    write_text(given.output / "README.md", page("\n".join(table), given, told))


def told_of(seen: Seen) -> dict[str, Any]:
    """Return what one method did, for those who want to draw it themselves."""
    steps = [(round(t, 3), float(f"{rate:.4g}"), kept) for t, rate, kept in seen.steps[::EVERY]]
    return {**vars(seen), "every": EVERY, "steps": steps}


def row(seen: Seen, busy: int) -> str:
    """Return a line of the table."""
    in_time = sum(ok for _, _, ok in seen.left)
    latest = -min(left for _, left, _ in seen.left)
    return f"| {busy} | {seen.method} | {in_time} of {len(seen.left)} | {seen.macs:.3g} | {latest:+.2f} s |"


def idle_rates(loads: Mapping[str, list[dict[str, Any]]]) -> tuple[float, float]:
    """Return the 10th and the 90th percentile of the rates measured while no load was on."""
    found = list[float]()
    for seen in (one for each in loads.values() for one in each):
        # On, off, on, ...: at an even number of switches the load is off. The rate follows within a few steps.
        off = [(t, rate) for t, rate, _ in seen["steps"] if sum(s < t for s in seen["switched"]) % 2 == 0]
        found += [rate for t, rate in off if all(not 0 < t - s < _SETTLED for s in seen["switched"])]
    low, *_, high = quantiles(found, n=10)
    return low, high


def page(table: str, given: argparse.Namespace, told: dict[str, Any]) -> str:
    """Return the page of the results."""
    own, rates = told["machine"], idle_rates(told["loads"])
    pictures = "\n\n".join(
        f"Busy processes: {n}\n\n![Rate, vector, time left](busy-{n}.png)" for n in given.busy
    )
    return f"""# Who still reports in time when the load changes in mid-round?

digits-cnn on one core, {given.rounds} rounds of {given.seconds:g} seconds, so many epochs that the whole network takes
{FULL_SHARE:.0%} of a round on an idle core. Busy processes share the core, off and on for
{PHASE * given.seconds:g} seconds in turn (orange), at the same times for every method. Real time:
the device's own clock, profile and pacer, without Flower around them.

{table}

The whole network's rate was {told["idle_macs_per_s"] / 1e9:.0f} GMAC/s when the epochs were chosen, and
{rates[0] / 1e9:.0f} to {rates[1] / 1e9:.0f} (10th to 90th percentile) in steps while the busy processes were off.

**MACs**: training MACs of updates that arrived. **Latest**: the update furthest beyond its deadline, or nearest to it;
who cannot finish stops at the deadline, and with FedAvg and Federated Dropout has nothing to send.

{pictures}

`{told["command"]}`: leanfleet {own["leanfleet"]}, python {own["python"]}, torch {own["torch"]}; {own["cpu"]},
{own["cores"]} cores; seed 0. All numbers are in [live.json](live.json), of the steps every {EVERY}th.
"""


if __name__ == "__main__":
    main()
