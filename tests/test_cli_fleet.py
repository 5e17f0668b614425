"""`leanfleet fleet` and `leanfleet watch` through the real command line."""

from __future__ import annotations

import json

import pytest

from command_line import refused
from leanfleet.runs import Run
from tiny_experiment import TOML as SHORT

TOML = SHORT.replace("per_round = 4", "per_round = 2\nround_seconds = 30.0")


@pytest.fixture
def record(tmp_path):
    with Run.create("r", "", tmp_path) as run:
        run.event(round=1, accuracy=0.5)
        idle = {"node": "9", "state": "idle", "rate_macs_per_s": 2e9}
        vector = {"rates": [0.0, 0.5, 0.333], "share": 0.25}
        done = {**idle, "state": "done", "macs": 3e9, **vector, "bytes_up": 1000, "bytes_down": 2000}
        status = {"round": 2, "devices": {"10": idle, "2": done}}
        (run.folder / "fleet.json").write_text(json.dumps(status))
        return run


def test_an_app_is_written_and_its_commands_printed(cli, tmp_path):
    (tmp_path / "x.toml").write_text(TOML)
    result = cli("fleet", "x.toml", "--nodes", "2", "-o", "app")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("flower-supernode ") == 2
    assert (tmp_path / "app" / "pyproject.toml").exists()
    again = cli("fleet", "x.toml", "-o", "app")
    refused(again, 2, "there is an app already")


def test_commands_as_json(cli, tmp_path):
    (tmp_path / "x.toml").write_text(TOML)
    found = json.loads(cli("fleet", "x.toml", "--json").out)
    assert found["app"] == "tiny"
    assert "; flwr run " in found["commands"][-1]


def test_a_method_that_cannot_live_there_is_one_line(cli, tmp_path):
    (tmp_path / "x.toml").write_text(TOML)
    refused(cli("fleet", "x.toml", "--set", "method.name=splitfed"), 2, "splitfed", "leanfleet run")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("--set", "fleet.round_seconds=1.0"), "--set fleet.round_seconds=30.0"),
        (("--nodes", "1"), "--set fleet.per_round=1"),
    ],
)
def test_what_cannot_work_says_what_would(cli, tmp_path, change, told):
    (tmp_path / "x.toml").write_text(TOML)
    refused(cli("fleet", "x.toml", *change), 2, told)
    assert not (tmp_path / "tiny").exists()


def test_adasplit_needs_all_its_devices_and_time_for_a_window(cli, tmp_path):
    (tmp_path / "s.toml").write_text(
        '[experiment]\nname = "s"\n[network]\nname = "digits-cnn"\n[fleet]\ndevices = 3\n'
        '[method]\nname = "adasplit"\ncut = 7\nselection_window = 20\n'
    )
    refused(cli("fleet", "s.toml", "--nodes", "2"), 2, "a round needs 3", "--set fleet.devices=2")
    short = "--set", "fleet.iteration_seconds=0.1"
    refused(cli("fleet", "s.toml", *short), 2, "--set fleet.iteration_seconds=1.5")
    refused(cli("fleet", "s.toml", "--set", "method.selection_window=1"), 2, "selection_window = 1")
    assert len(json.loads(cli("fleet", "s.toml", "--json").out)["commands"]) == 1 + 3 + 3 + 1
    (tmp_path / "s").rename(tmp_path / "first")
    held = "--set", "fleet.held_out=1"
    assert len(json.loads(cli("fleet", "s.toml", *held, "--json").out)["commands"]) == 1 + 2 + 2 + 1


def test_a_fleet_is_shown_once(cli, record):
    out = cli("watch", str(record.folder), "--once").out
    assert "round 2, 1 done, accuracy 50.0%" in out
    lines = [line.split() for line in out.splitlines()]
    assert ["2", "done", "2e+09", "█▄▆", "25%", "3e+09", "1,000", "2,000"] in lines
    assert ["10", "idle", "2e+09", "-", "-", "-", "-", "-"] in lines


def test_watching_ends_with_the_run(cli, record):
    with Run.open(record.folder) as run:
        run.restore()
        run.event(round=1, accuracy=0.5)
        run.finish({})
    result = cli("watch", str(record.folder))
    assert result.code == 0
    assert "accuracy 50.0%" in result.out


def test_other_records_are_refused(cli, tmp_path):
    refused(cli("watch", "none"), 2, "no such run record")
    Run.create("plain", "", tmp_path).close()
    refused(cli("watch", "plain"), 2, "no record of a real fleet")
