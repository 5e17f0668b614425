"""Real processes: the curve of the simulation, and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from small_gossip import experiment, states

from leanfleet.engines import peers, run
from leanfleet.errors import ExperimentError, RecordError
from leanfleet.experiment import dumps
from leanfleet.runs import Run

LOSSY = "fleet.loss_rate=0.2", "method.final_rounds=3"
WAIT_S = 120.0


@pytest.fixture
def alone(monkeypatch):
    """This process as the only one that torchrun has started."""
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    yield
    assert not dist.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ((), r"1 processes for \[fleet\] devices = 4; make them equal"),
        (("method.name=fedavg", "fleet.per_round=2"), "fedavg is no gossip method"),
        (("fleet.late_rate=0.1",), "exist in the simulation only; leave them out"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(tmp_path, alone, overrides, error):
    with pytest.raises(ExperimentError, match=error) as caught:
        peers.run(experiment(*overrides), root=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_without_torchrun_it_says_how_to_start(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(
        ExperimentError, match=r"start it with torchrun, for example: torchrun .* --engine peers"
    ):
        peers.run(experiment(), root=tmp_path)


def test_a_record_of_the_simulation_is_not_for_processes(tmp_path, alone, monkeypatch):
    record = run(experiment("experiment.rounds=1"), root=tmp_path, workers=1)
    (record.folder / "summary.json").unlink()
    monkeypatch.setattr(peers, "_job", lambda experiment: None)
    with pytest.raises(RecordError, match="made by one process; leave out --engine peers"):
        peers.resume(record.folder)


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "4",
        "-m",
        "leanfleet",
    ]
    return subprocess.Popen(
        [*torchrun, *arguments, "--engine", "peers"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start torchrun; whatever a failed test leaves behind is ended."""
    processes: list[subprocess.Popen[str]] = []

    def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
        processes.append(started(folder, *arguments))
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.communicate()


def rank(launcher: int, number: int) -> int:
    """The process of a rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={number}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"no rank {number}")


def wait_for(path: Path, lines: int) -> None:
    end = time.monotonic() + WAIT_S
    while not path.exists() or path.read_text().count("\n") < lines:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_node_that_dies_ends_the_others_and_the_run_resumes_to_the_simulations_curve(tmp_path, launch):
    """Whatever was lost travels as an empty frame, and is what the simulation loses."""
    asked = experiment("experiment.rounds=20", "experiment.eval_every=4", *LOSSY)
    (tmp_path / "x.toml").write_text(dumps(asked))
    process = launch(tmp_path, "run", "x.toml")
    folder = tmp_path / "runs" / "small"
    wait_for(folder / "events.jsonl", 3)
    os.kill(rank(process.pid, 2), signal.SIGKILL)
    begin = time.monotonic()
    _, err = process.communicate(timeout=WAIT_S)
    assert time.monotonic() - begin < 25, "they ended by themselves, before torchrun lost patience"
    assert process.returncode != 0
    told = [line for line in err.splitlines() if line.startswith("error: node ")]
    assert told, err
    assert "gone" in told[0]
    assert f"torchrun --nproc-per-node 4 -m leanfleet resume {folder.relative_to(tmp_path)}" in err
    assert not Run.open(folder).finished

    again = launch(tmp_path, "resume", "runs/small")
    _, err = again.communicate(timeout=WAIT_S)
    assert again.returncode == 0, err
    simulated = run(asked, root=tmp_path / "simulated", workers=1)
    one, other = simulated.summary(), Run.open(folder).summary()
    for key in ("bytes_up", "bytes_down", "macs_total", "bytes_authors", "lost_share", "ratio"):
        assert one[key] == pytest.approx(other[key], rel=1e-3), key
    for key in ("accuracies", "weights", "loss", "accuracy_averaged", "disagreement"):
        assert one[key] == pytest.approx(other[key], rel=0.02, abs=0.01), key
    curves = [
        [e.get("accuracy") for e in record.events() if "accuracy" in e]
        for record in (simulated, Run.open(folder))
    ]
    assert curves[0] == pytest.approx(curves[1], abs=0.01)
    assert len(curves[0]) == 6
    x = Run.open(folder / "rank-3").latest().tensors["node/x"]
    assert float((x - states(simulated)[3]["x"]).abs().max()) < 1e-2
