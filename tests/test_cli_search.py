"""`leanfleet search` and `leanfleet lut` through the real command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Cli, refused
from leanfleet.errors import StorageError
from leanfleet.nets import build
from leanfleet.search import FAST, PROTOCOLS
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.lut import Lut

EXAMPLE = Path(__file__).parent.parent / "examples" / "own-network"
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


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command with a tiny protocol for `fast`."""
    monkeypatch.setitem(PROTOCOLS, "fast", TINY)
    return cli


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
    assert "no plot; nothing was judged" in result.err
    assert not Path("net.png").exists()


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
    phases = [re.match(r"[a-z-]+", line)[0] for line in lines]
    assert phases == sorted(phases, key=["pre-training", "anchors", "search", "final"].index)
    assert re.fullmatch(r"pre-training, \d+% done: ETA -:--", lines[0])
    searching = [line for line in lines if line.startswith("search 1/2, the next ")]
    assert searching
    assert all(", hypervolume (loss) " in line and "ETA 0:" in line for line in searching)


def test_seconds_can_be_the_cost(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock of its own: so small a network's steps last as long as the machine likes.
    monkeypatch.setattr(
        "leanfleet.profiling.step_time._time",
        lambda local, batch, kept, end: 1e-3 + 1e-9 * local.step.plan.macs_of(kept),
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
        (("--lr", "0"), ("--lr 0", "greater than 0")),
    ],
)
def test_what_is_wrong_is_said_in_one_line(cli: Cli, more: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(cli(*GIVEN, *more), 2, *words)
    assert not list(Path().iterdir())


def test_a_file_that_is_there_is_left_alone(cli: Cli) -> None:
    Path("net.lut").write_text("hours of work")
    refused(cli(*GIVEN), 2, "-o net.lut", "is there already")
    assert Path("net.lut").read_text() == "hours of work"


def test_a_wrong_network_is_named(cli: Cli) -> None:
    rest = GIVEN[2:]
    refused(cli("search", "digits-cn", *rest), 2, "'digits-cn' is unknown", "did you mean 'digits-cnn'")
    refused(cli("search", "nowhere:Net", *rest), 2, "nowhere")
    refused(cli("search"), 2, "Missing argument", "leanfleet search --help")
    Path("odd.py").write_text(
        "from torch import nn\nclass Odd(nn.Module):\n"
        "    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"
    )
    refused(cli("search", "odd:Odd", *rest), 2, "cannot be traced")


def test_a_network_of_ones_own_is_searched_and_trained(cli: Cli) -> None:
    shutil.copytree(EXAMPLE, "own")
    found = cli("search", "own/mobile.py:net", "--data", "digits", "-o", "own/mobile.lut", "--workers", "1")
    assert found.code == 0, found.err
    table = Lut.load(Path("own/mobile.lut"))
    # The three layers of an inverted residual share the channels that its depthwise convolution filters.
    assert 64 in [channels for _, channels in table.groups]
    assert len({row.rates for row in table.rows}) == len(table.rows) > 4

    small = ("experiment.rounds=2", "fleet.devices=4", "fleet.per_round=2")
    trained = cli("run", "own/experiment.toml", "--workers", "1", *(w for s in small for w in ("--set", s)))
    assert trained.code == 0, trained.err
    used = Lut.load(Path("runs/own-network/lut.safetensors"))
    assert (used.origin, used.rows) == ("search (fast, digits)", table.rows)


def test_a_search_that_was_begun_is_not_begun_again(cli: Cli) -> None:
    Path("net.lut.partial").write_bytes(b"rubbish")
    refused(cli(*GIVEN), 2, "net.lut.partial", "go on with --resume, or remove the file")
    refused(cli(*GIVEN, "--resume"), 2, "net.lut.partial", "damaged")
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
    code = "import test_cli_search as t; t.PROTOCOLS['fast'] = t.TINY; from leanfleet.cli import main; main()"
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
    refused(cli(*GIVEN), 2, "net.lut.partial", "go on with --resume, or remove the file")
    refused(cli(*GIVEN, "--resume", "--seed", "1"), 2, "net.lut.partial", "was begun with seed = 0, not 1")
    ended = cli(*GIVEN, "--resume")
    assert ended.code == 0, ended.err
    assert not partial.exists()
    assert Lut.load(Path("net.lut")).about["seed"] == 0


def test_a_table_that_is_none_is_named(cli: Cli) -> None:
    refused(cli("lut", "no.lut"), 2, "no.lut: no such file")
    Path("garbage.lut").write_bytes(bytes(range(256)))
    refused(cli("lut", "garbage.lut"), 2, "garbage.lut")
    plan = SubnetPlan.trace(build("digits-cnn-small"), torch.zeros(1, 1, 8, 8))
    Lut.uniform(plan, 4).save(Path("whole.lut"))
    Path("half.lut").write_bytes(Path("whole.lut").read_bytes()[:-20])
    refused(cli("lut", "half.lut"), 2, "half.lut")
    assert cli("lut", "whole.lut").code == 0
    refused(
        cli("lut", "whole.lut", "--plot", "whole.png"), 2, "--plot whole.png", "whole.lut", "nothing to draw"
    )
    assert not Path("whole.png").exists()


def test_a_picture_can_be_drawn_later(cli: Cli) -> None:
    assert cli(*GIVEN).code == 0
    first = Path("net.png").read_bytes()
    again = cli("lut", "net.lut", "--plot", "again.png")
    assert again.code == 0, again.err
    assert again.out.splitlines()[-1] == "plot: again.png"
    assert Path("again.png").read_bytes() == first
    table = Path("net.lut").read_bytes()
    for there in ("net.lut", "net.png"):
        refused(cli("lut", "net.lut", "--plot", there), 2, f"--plot {there}: is there already")
    assert (Path("net.lut").read_bytes(), Path("net.png").read_bytes()) == (table, first)


def test_a_table_whose_picture_cannot_be_drawn_is_kept(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageError("net.png: cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("leanfleet.report.front.write_bytes", full)
        result = cli(*GIVEN)
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1] == "error: net.png: cannot be written: No space left on device"
    assert len(Lut.load(Path("net.lut")).rows) > 4
