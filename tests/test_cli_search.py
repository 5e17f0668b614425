"""`leanfleet search` and `leanfleet lut` through the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from leanfleet.cli import main
from leanfleet.errors import StorageError
from leanfleet.nets import build
from leanfleet.search import FAST, PROTOCOLS
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.lut import Lut

GIVEN = ("search", "digits-cnn-small", "--data", "digits", "-o", "net.lut", "--workers", "1")
TINY = replace(
    FAST,
    population=8,
    design=12,
    refits=(4,),
    seeds=1,
    anchors=2,
    fresh=2,
    batch_size=16,
    steps=4,
    held_out=60,
    start_accuracy=0.2,
)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process, in a folder of its own, with a tiny protocol for `fast`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROTOCOLS, "fast", TINY)

    def call(*args: str) -> Result:
        monkeypatch.setenv("LEANFLEET_DEBUG", "")
        monkeypatch.setattr(sys, "argv", ["leanfleet", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        return Result(int(ended.value.code or 0), *capsys.readouterr())

    return call


def refused(result: Result, *words: str) -> None:
    """Check for one line on stderr that begins with `error:`, names these words, and for exit status 2."""
    assert result.code == 2, result
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_a_search_writes_a_table_and_a_picture_and_shows_them(cli: Cli) -> None:
    result = cli(*GIVEN)
    assert result.code == 0, result.err
    assert sorted(path.name for path in Path().iterdir()) == ["net.lut", "net.png"]
    assert result.out.splitlines()[0].rstrip() == "net.lut"
    assert result.out.splitlines()[-1] == "plot: net.png"
    shown = cli("lut", "net.lut")
    assert shown.code == 0
    # The same table, but for the line of the plot.
    assert result.out.startswith(shown.out.rstrip("\n"))


def test_a_hypervolume_is_never_shown_without_its_measure(cli: Cli) -> None:
    shown = cli(*GIVEN).out
    lines = [line.split()[:2] for line in shown.splitlines() if line.strip().startswith("hypervolume")]
    assert lines == [
        [name, f"({measure})"]
        for name in ("hypervolume", "hypervolume_uniform")
        for measure in ("accuracy", "loss")
    ]


def test_a_budget_for_nothing_makes_a_table_that_says_so(cli: Cli) -> None:
    result = cli(*GIVEN, "--budget", "0.001s")
    assert result.code == 0, result.err
    table = Lut.load(Path("net.lut"))
    assert table.origin == "uniform"
    assert "short trainings 0 of 16" in result.out
    assert Path("net.png").exists()


def test_json_has_every_row(cli: Cli) -> None:
    result = cli(*GIVEN, "--seed", "3", "--json")
    assert result.code == 0, result.err
    told: dict[str, Any] = json.loads(result.out)
    table = Lut.load(Path("net.lut"))
    assert (told["file"], told["plot"], told["seed"]) == ("net.lut", "net.png", 3)
    assert (told["network"], told["data"], told["cost"]) == ("digits-cnn-small", "digits", "macs")
    assert told["fingerprint"] == table.fingerprint
    assert [group["channels"] for group in told["groups"]] == [channels for _, channels in table.groups]
    assert [tuple(row["rates"]) for row in told["rows"]] == [row.rates for row in table.rows]
    assert [row["macs"] for row in told["rows"]] == sorted(row["macs"] for row in told["rows"])
    again = json.loads(cli("lut", "net.lut", "--json").out)
    assert {**told, "plot": None} == again


def test_progress_goes_to_stderr_in_plain_lines(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    # The package has a function of the same name.
    monkeypatch.setattr(sys.modules["leanfleet.cli.search"], "_SECONDS_BETWEEN_LINES", 0.0)
    result = cli(*GIVEN, "--json")
    json.loads(result.out)
    lines = result.err.splitlines()
    assert "\x1b" not in result.err
    assert [line.split()[0] for line in lines] == sorted(
        (line.split()[0] for line in lines), key=["pre-training", "anchors", "generation", "final"].index
    )
    searching = [line for line in lines if line.startswith("generation 1/2")]
    assert searching
    assert all(", hypervolume (loss) " in line and "ETA 0:" in line for line in searching)


def test_seconds_can_be_the_cost(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock of its own: so small a network's steps last as long as the machine likes.
    monkeypatch.setattr(
        "leanfleet.search.cost._time",
        lambda plan, params, task, rates: 1e-3 + 1e-9 * plan.macs(rates.tolist()),
    )
    result = cli(*GIVEN, "--cost", "seconds", "--json")
    assert result.code == 0, result.err
    seconds = [row["seconds"] for row in json.loads(result.out)["rows"]]
    assert all(value > 0 for value in seconds)
    assert "step ms" in cli("lut", "net.lut").out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--budget", "soon"), ("--budget soon", "90s, 20m or 2h")),
        (("--budget", "0s"), ("--budget 0s",)),
        (("--budget", "20"), ("--budget 20",)),
        (("--protocol", "quick"), ("--protocol quick", "fast, paper")),
        (("--cost", "joules"), ("--cost joules", "macs or seconds")),
        (("--data", "nothing"), ("nothing: no such data set",)),
        (("--keep", "conv9"), ("conv9",)),
        (("--seed", "-1"), ("--seed",)),
        (("--workers", "0"), ("--workers",)),
        (("--resume",), ("net.lut.partial", "nothing to resume")),
        (("-o", "no/net.lut"), ("no/net.lut", "no folder no")),
        (("-o", "net.png"), ("-o net.png", "such as net.lut")),
        (("-o", "."), ("-o .", "such as net.lut")),
    ],
)
def test_what_is_wrong_is_said_in_one_line(cli: Cli, more: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(cli(*GIVEN, *more), *words)
    assert not list(Path().iterdir())


def test_a_wrong_network_is_named(cli: Cli) -> None:
    rest = GIVEN[2:]
    refused(cli("search", "digits-cn", *rest), "'digits-cn' is unknown", "did you mean 'digits-cnn'")
    refused(cli("search", "nowhere:Net", *rest), "nowhere")
    refused(cli("search"), "Missing argument", "leanfleet search --help")
    Path("odd.py").write_text(
        "from torch import nn\nclass Odd(nn.Module):\n"
        "    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"
    )
    refused(cli("search", "odd:Odd", *rest), "cannot be traced")


def test_a_search_that_was_begun_is_not_begun_again(cli: Cli) -> None:
    Path("net.lut.partial").write_bytes(b"rubbish")
    refused(cli(*GIVEN), "net.lut.partial", "go on with --resume, or remove the file")
    refused(cli(*GIVEN, "--resume"), "net.lut.partial", "damaged")
    assert Path("net.lut.partial").read_bytes() == b"rubbish"


def test_a_full_disk_ends_with_one_line_that_says_how_to_go_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("net.lut: cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Lut, "save", full)
        result = cli(*GIVEN)
    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert last.startswith(
        "error: net.lut: cannot be written: No space left on device; net.lut.partial is kept, "
    )
    assert last.endswith("--resume")


def test_an_interrupted_search_goes_on_to_its_end(cli: Cli, tmp_path: Path) -> None:
    # A process of its own, but with this test's protocol.
    code = "import test_cli_search as t; t.PROTOCOLS['fast'] = t.TINY; t.main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", code, *GIVEN]
    started = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE)
    partial = tmp_path / "net.lut.partial"
    while started.poll() is None and not partial.exists():
        time.sleep(0.005)
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=60)
    assert started.returncode == 130
    last = told.splitlines()[-1]
    assert last == "interrupted; net.lut.partial is kept, go on with the same command and --resume"
    assert not (tmp_path / "net.lut").exists()
    refused(cli(*GIVEN), "net.lut.partial", "go on with --resume, or remove the file")
    refused(cli(*GIVEN, "--resume", "--seed", "1"), "net.lut.partial", "was begun with seed = 0, not 1")
    ended = cli(*GIVEN, "--resume")
    assert ended.code == 0, ended.err
    assert not partial.exists()
    assert Lut.load(Path("net.lut")).about["seed"] == 0


def test_a_table_that_is_none_is_named(cli: Cli) -> None:
    refused(cli("lut", "no.lut"), "no.lut: no such file")
    Path("garbage.lut").write_bytes(bytes(range(256)))
    refused(cli("lut", "garbage.lut"), "garbage.lut")
    plan = SubnetPlan.trace(build("digits-cnn-small"), torch.zeros(1, 1, 8, 8))
    Lut.uniform(plan, 4).save(Path("whole.lut"))
    Path("half.lut").write_bytes(Path("whole.lut").read_bytes()[:-20])
    refused(cli("lut", "half.lut"), "half.lut")
    assert cli("lut", "whole.lut").code == 0
