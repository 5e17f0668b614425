"""The command line: what it takes, what it prints, how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer.main
from safetensors.torch import load_file

from command_line import Cli, Result, refused
from leanfleet import experiment
from leanfleet.cli import app
from leanfleet.experiment import loads
from leanfleet.nets import NETWORKS, build
from leanfleet.runs import Run
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.lut import Lut

TINY = """
[experiment]
name = "tiny"
rounds = 2
[network]
name = "digits-cnn-small"
[fleet]
devices = 4
per_round = 2
[training]
batch_size = 32
"""

SURFACE = {
    "": ["--debug", "--help", "--version"],
    "demo": ["--json", "--workers"],
    "run": ["FILE", "--device", "--engine", "--json", "--set", "--workers"],
    "compare": ["FILES", "--device", "--json", "--methods", "--seeds", "--set", "--workers"],
    "resume": ["RUN", "--device", "--engine", "--json", "--workers"],
    "merge": ["RUN", "--device", "--json", "--rounds", "--workers"],
    "report": ["RUNS", "--json", "--output", "-o"],
    "evaluate": ["RUN", "--data", "--device", "--image", "--json", "--label", "--workers"],
    "export": ["RUN", "--client", "--output", "-o"],
    "nets": ["NAME", "--classes", "--cut", "--json", "--keep", "--shape"],
    "doctor": ["--json"],
    "search": [
        "NETWORK", "--budget", "--cost", "--data", "--image", "--json", "--keep", "--label", "--lr", "--out",
        "--protocol", "--resume", "--seed", "--workers", "-o",
    ],
    "lut": ["FILE", "--json", "--plot"],
    "score": [
        "RUNS", "--byte-mode", "--bytes-max", "--compute-mode", "--json", "--macs-max", "--output", "--temperature",
        "-o",
    ],
    "graph": ["SPEC", "--json", "--nodes", "--output", "--seed", "--window", "-o"],
    "fleet": ["FILE", "--host", "--json", "--nodes", "--output", "--port", "--set", "-o"],
    "watch": ["RUN", "--json", "--once"],
}  # fmt: skip


@pytest.fixture
def cli(cli: Cli, tmp_path: Path) -> Cli:
    (tmp_path / "tiny.toml").write_text(TINY)
    return cli


def process(folder: Path, *args: str, limit: str = "", **how: Any) -> subprocess.Popen[str]:
    """Start a command as a real process."""
    command = [sys.executable, "-m", "leanfleet", *args]
    if limit:
        command = ["bash", "-c", f'{limit}; exec "$@"', "bash", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes, **how)  # type: ignore[call-overload, no-any-return]


def finish(started: subprocess.Popen[str]) -> Result:
    out, err = started.communicate(timeout=120)
    return Result(started.returncode, out, err)


def tiny(cli: Cli, *sets: str) -> Result:
    return cli("run", "tiny.toml", "--workers", "1", *(word for text in sets for word in ("--set", text)))


def test_the_surface_changes_only_on_purpose() -> None:
    top: Any = typer.main.get_command(app)

    def words(command: Any) -> list[str]:
        arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
        return arguments + sorted(o for p in command.params if p.param_type_name == "option" for o in p.opts)

    found = {"": sorted([*words(top), "--help"])} | {name: words(c) for name, c in top.commands.items()}
    assert found == SURFACE


def test_help_and_version(cli: Cli) -> None:
    assert all(f" {name} " in cli("--help").out for name in SURFACE if name)
    assert cli("run", "-h").out == cli("run", "--help").out
    assert cli("--version").out.startswith("leanfleet 0.")


def test_a_wrong_command_line_is_one_line(cli: Cli) -> None:
    refused(cli("run"), 2, "Missing argument", "leanfleet run --help")
    refused(cli("run", "tiny.toml", "--workers", "0"), 2, "--workers")
    refused(cli("run", "tiny.toml", "--engine", "peers", "--workers", "2"), 2, "--workers", "torchrun")
    refused(cli("resume", "runs/x", "--engine", "peers", "--device", "cuda"), 2, "--device cuda", "peers")
    refused(cli("run", "tiny.toml", "--device", "quantum"), 2, "--device quantum: torch cannot compute there")
    assert not Path("runs").exists()
    refused(cli("rn"), 2, "No such command 'rn'. Did you mean 'run'? (leanfleet --help shows how)")
    nothing = cli()
    assert (nothing.code, nothing.err) == (2, "")
    assert "Usage" in nothing.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_to_its_end(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    sets = ("--set", "experiment.rounds=40", "--set", "experiment.eval_every=20")
    begun = process(tmp_path, "run", "tiny.toml", "--workers", "1", *sets)
    events = tmp_path / "runs" / "tiny" / "events.jsonl"
    while not events.exists() and begun.poll() is None:
        time.sleep(0.02)
    begun.send_signal(number)
    interrupted = finish(begun)
    assert interrupted.code == 130
    assert "Traceback" not in interrupted.err
    last = interrupted.err.splitlines()[-1]
    assert last == "interrupted; runs/tiny is kept, go on with: leanfleet resume runs/tiny"

    resumed = finish(process(tmp_path, "resume", "runs/tiny"))
    assert (resumed.code, resumed.out.splitlines()[-1]) == (0, "record: runs/tiny")
    summary = Run(tmp_path / "runs" / "tiny").summary()
    assert summary is not None
    assert summary["rounds"] == 40


def test_what_can_be_done_with_a_run(cli: Cli) -> None:
    assert tiny(cli).code == 0
    again = cli("resume", "runs/tiny", "--json")
    assert (again.code, again.err) == (0, "runs/tiny: already finished\n")
    (row,) = json.loads(again.out)["runs"]
    assert (row["rounds"], row["finished"]) == (2, True)

    found = json.loads(cli("evaluate", "runs/tiny", "--workers", "1", "--json").out)
    assert found["accuracy"] == row["accuracy"]
    assert found["accuracy_recalibrated"] == row["accuracy_recalibrated"]
    assert f"{100 * row['accuracy']:.2f}" in cli("evaluate", "runs/tiny", "--workers", "1").out
    refused(cli("evaluate", "runs/tiny", "--data", "digts"), 2, "digts", "did you mean 'digits'")
    refused(cli("evaluate", "runs/tiny", "--label", "digit"), 2, "--label", "go with --data")

    assert "plot: plots/accuracy-time.png" in cli("report", "runs/tiny", "-o", "plots").out
    assert Path("plots/accuracy-rounds.png").read_bytes().startswith(b"\x89PNG")

    Path("file").touch()
    unplotted = cli("report", "runs/tiny", "-o", "file/plots")
    assert (unplotted.code, "final A" in unplotted.out) == (1, True)
    assert unplotted.err.startswith("error: file/plots")

    assert cli("export", "runs/tiny", "-o", "net.safetensors") == (0, "net.safetensors\n", "")
    assert "norm1.running_var" in load_file("net.safetensors")
    refused(cli("export", "runs/tiny", "-o", "net.onnx"), 2, "net.onnx", ".safetensors, .pt2")


def test_a_budget_that_ends_a_run_is_told(cli: Cli) -> None:
    assert "tiny: ended after round 1 of 2: [budget] macs is used up" in tiny(cli, "budget.macs=1.0").out


def test_a_record_without_its_state_is_not_begun_anew_in_silence(cli: Cli) -> None:
    assert tiny(cli).code == 0
    for name in ("state.json", "summary.json"):
        Path("runs/tiny", name).unlink()
    refused(cli("resume", "runs/tiny"), 2, "state.json: missing, though rounds were played")
    Path("runs/tiny/state.json").write_text("{}")
    refused(cli("resume", "runs/tiny"), 2, "state.json: damaged: checkpoints: Field required")


def test_a_script_that_starts_a_run_when_it_is_imported_is_told(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "script.py").write_text(
        "import leanfleet\nleanfleet.run(leanfleet.load('tiny.toml'), workers=2)\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode != 0
    assert "put that below if __name__ == '__main__':" in done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"], "no worker has begun a record"


def test_nets_and_doctor(cli: Cli) -> None:
    found = json.loads(cli("nets", "femnist-cnn", "--json").out)
    assert {"macs", "macs_conv", "params", "groups"} <= set(found)
    assert (found["macs"], found["params"], len(found["groups"])) == (4_015_616, 330_430, 2)
    assert "4,015,616" in cli("nets", "femnist-cnn", "--keep", "conv1").out
    every = cli("nets")
    assert every.code == 0
    assert all(name in every.out for name in NETWORKS)
    refused(cli("nets", "nofile.py:net"), 2, "nofile.py")
    assert json.loads(cli("doctor", "--json").out)["data"]["digits"] == "built in"
    assert "data sets" in cli("doctor").out


def test_a_comparison_ends_with_a_table_and_curves(cli: Cli) -> None:
    result = cli("compare", "tiny.toml", "--methods", "distreal, fedavg", "--seeds", "2", "--workers", "1")
    assert result.code == 0, result.err
    folder = Path("runs/compare-tiny")
    assert sorted(p.name for p in folder.glob("*.png")) == [
        "accuracy-macs.png",
        "accuracy-rounds.png",
        "accuracy-time.png",
    ]
    tables = json.loads(cli("report", str(folder), "--json").out)
    assert [(g["label"], g["seeds"]) for g in tables["groups"]] == [("distreal", [0, 1]), ("fedavg", [0, 1])]
    again = cli("resume", str(folder))
    assert again.err.startswith(f"{folder}: already finished\n")
    assert again.out == result.out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("fleet.devces=3", ["--set fleet.devces=3", "[fleet] devces", "did you mean 'devices'"]),
        ("method.name=fedvg", ["unknown method", "did you mean 'fedavg'"]),
        ("training.lr=-0.1", ["[training] lr = -0.1", "greater than 0"]),
        ("data.partition=pie(3)", ["pie"]),
        ("network.name=densenet", ["'densenet' is unknown"]),
        ("data.source=nothing", ["nothing: no such data set"]),
    ],
)
def test_a_wrong_setting_is_the_users_mistake(cli: Cli, override: str, words: list[str]) -> None:
    refused(tiny(cli, override), 2, *words)
    assert not Path("runs").exists()


def test_files_that_are_not_what_they_should_be(cli: Cli) -> None:
    refused(cli("run", "no.toml"), 2, "no.toml", "No such file")
    Path("bad.toml").write_text("[fleet\n")
    refused(cli("run", "bad.toml"), 2, "bad.toml", "not TOML")
    pq.write_table(pa.table({"image": [b"x"] * 4}), "unlabelled.parquet")
    refused(tiny(cli, "data.source=./unlabelled.parquet"), 2, "unlabelled.parquet", "label")
    Path("trace.csv").write_text("device,seconds,rate\na,0,-0.5\n")
    refused(tiny(cli, "fleet.availability=trace", "fleet.trace=trace.csv"), 2, "trace.csv, line 2")
    refused(
        tiny(cli, "fleet.availability=trace", "fleet.trace=no.csv"), 2, "no.csv: cannot be read: No such file"
    )
    assert not Path("runs").exists()
    Path("odd.py").write_text(
        "from torch import nn\nclass Odd(nn.Module):\n"
        "    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"
    )
    refused(tiny(cli, "network.name=odd:Odd"), 2, "cannot be traced")
    refused(cli("nets", "odd:Odd", "--shape", "1,8,8"), 2, "cannot be traced")
    plan = SubnetPlan.trace(build("digits-cnn"), torch.zeros(1, 1, 8, 8))
    Lut.uniform(plan, 4).save(Path("other.lut"))
    refused(tiny(cli, "method.lut=other.lut"), 2, "other.lut", "another network")


def test_a_checkpoint_cut_in_half_is_named_and_nothing_else_is_touched(cli: Cli) -> None:
    assert tiny(cli).code == 0
    folder = Path("runs/tiny")
    (folder / "summary.json").unlink()
    checkpoint = folder / "checkpoint-2.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for command in ("resume", "evaluate"):
        refused(cli(command, str(folder)), 2, "checkpoint-2.safetensors: damaged", "delete it")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    checkpoint.unlink()
    assert cli("resume", str(folder)).code == 0


def test_a_diverged_run_ends_with_one_line(cli: Cli) -> None:
    result = tiny(cli, "training.lr=1e30")
    refused(result, 1, "training has diverged")


def test_a_full_disk_ends_with_one_line_and_a_record_that_goes_on(cli: Cli, tmp_path: Path) -> None:
    # 200 kB a file: enough for all but the checkpoint of a larger network.
    sets = ("--set", "network.name=digits-cnn", "--workers", "1")
    full = finish(process(tmp_path, "run", "tiny.toml", *sets, limit="ulimit -f 200"))
    refused(full, 1, "runs/tiny", "cannot be written", "leanfleet resume runs/tiny")
    assert cli("resume", "runs/tiny").code == 0


def test_debug_shows_where(cli: Cli) -> None:
    result = cli("report", "nothing", "--debug")
    assert result.code == 2
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1] == "error: nothing: no such run record"


def test_an_unexpected_error_is_one_line_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("float\ndivision")

    monkeypatch.setattr("leanfleet.engines.describe.machine", broken)
    refused(cli("doctor"), 1, "ZeroDivisionError: float division", "--debug")


def test_an_interrupt_leaves_no_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("leanfleet.engines.describe.machine", interrupted)
    result = cli("doctor")
    assert (result.code, result.out, result.err.strip()) == (130, "", "")


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    started = process(tmp_path, "doctor", "--json")
    assert started.stdout is not None
    started.stdout.close()
    assert started.wait(timeout=120) in (0, 1)
    assert started.stderr is not None
    with started.stderr:
        assert started.stderr.read() == ""


def test_the_demo_ends_with_table_plot_and_sentence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanfleet.cli._DEMO_SEEDS", 1)
    monkeypatch.setattr(experiment, "loads", lambda text: loads(text, ["experiment.rounds=2"]))
    result = cli("demo", "--workers", "1")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    shown = ("distreal", "federated-dropout", "small", "fedavg")
    assert all(any(line.startswith(method) for line in lines) for method in shown)
    assert "plot: runs/demo/accuracy-time.png" in lines
    early, late = lines[-1].split("; after ")
    assert early.startswith("After 1 s of virtual time distreal classifies ")
    assert late.startswith("2 s of virtual time distreal classifies ")
    assert lines[-1].endswith(".")
