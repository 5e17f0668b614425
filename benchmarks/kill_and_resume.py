"""Kill a run with SIGKILL at random moments, resume it each time, and compare with the uninterrupted run.

    python benchmarks/kill_and_resume.py --kills 20

Exits with 1 unless parameters, events and summary are equal bit for bit (all but the wall clock).
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from leanfleet.engines.local import saved_params
from leanfleet.runs import Run

EXAMPLE = Path(__file__).parent.parent / "examples" / "distreal-digits.toml"


def leanfleet(*arguments: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leanfleet", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def outcome(record: Run) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    events = [{k: v for k, v in e.items() if k != "seconds_wall"} for e in record.events()]
    summary = {k: v for k, v in (record.summary() or {}).items() if k != "seconds_wall"}
    return events, summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    settings = [
        "--set",
        f"experiment.rounds={given.rounds}",
        "--set",
        "experiment.name=run",
        "--workers",
        "2",
    ]
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        for folder in (whole, killed):
            folder.mkdir()
        begin = time.monotonic()
        leanfleet("run", str(EXAMPLE), *settings, folder=whole).wait()
        longest = time.monotonic() - begin
        print(f"uninterrupted: {given.rounds} rounds in {longest:.0f} s", flush=True)
        process = leanfleet("run", str(EXAMPLE), *settings, folder=killed)
        for kill in range(given.kills):
            record = killed / "runs" / "run"
            while not (record / "experiment.toml").exists():
                time.sleep(0.01)
            # From the first moments of a start to the middle of a round.
            time.sleep(chance.uniform(0.0, 9.0))
            process.kill()
            process.wait()
            done = (
                sum(1 for _ in (record / "events.jsonl").open()) if (record / "events.jsonl").exists() else 0
            )
            print(f"kill {kill + 1}/{given.kills} after round {done}", flush=True)
            process = leanfleet("resume", "runs/run", folder=killed)
        code = process.wait()
        one, two = (Run.open(folder / "runs" / "run") for folder in (whole, killed))
        params_one, params_two = saved_params(one), saved_params(two)
        same = all(torch.equal(params_one[n], params_two[n]) for n in params_one)
        same &= outcome(one) == outcome(two)
        print(f"last resume exited with {code}; " + ("equal bit for bit" if same else "DIFFERENT"))
    return 0 if same and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
