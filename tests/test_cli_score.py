"""`leanfleet score`, and what other commands say where families meet, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Cli
from leanfleet.cli.score import parse_quantity
from leanfleet.errors import UserError

FEDERATED = """
[experiment]
name = "fed"
rounds = 2
[network]
name = "digits-cnn-small"
[fleet]
devices = 4
per_round = 2
[training]
batch_size = 32
"""
SPLIT = """
[experiment]
name = "split"
rounds = 2
[network]
name = "digits-cnn-small"
[fleet]
devices = 2
[training]
iterations = 4
[method]
name = "sl-basic"
cut = 1
"""


@pytest.fixture
def cli(cli: Cli, tmp_path: Path) -> Cli:
    (tmp_path / "fed.toml").write_text(FEDERATED)
    (tmp_path / "split.toml").write_text(SPLIT)
    return cli


def test_families_meet_in_one_comparison(cli: Cli) -> None:
    compared = cli("compare", "fed.toml", "split.toml", "--seeds", "1", "--workers", "1")
    assert compared.code == 0, compared.err
    folder = "runs/comparison"
    assert f"plot: {folder}/score.png" in compared.out
    assert "C3 = accuracy * exp" in compared.out
    assert compared.out.count("scores change with who is compared") == 1
    assert "score" in json.loads(cli("report", folder, "--json").out)

    scored = cli("score", folder, "-o", "plots")
    assert scored.code == 0, scored.err
    assert scored.out.splitlines()[-1] == "plot: plots/score.png"
    found = json.loads(cli("score", folder, "--json", "--bytes-max", "1G", "--macs-max", "2 T").out)
    assert (found["terms"]["bytes_max"], found["terms"]["macs_max"]) == (1e9, 2e12)
    by_family = {row["family"]: row for row in found["groups"]}
    assert set(by_family) == {"federated", "split"}
    summary = json.loads(Path(folder, "split-sl-basic-s0", "summary.json").read_text())
    assert by_family["split"]["client_macs"]["mean"] == summary["forward_macs"]
    assert by_family["split"]["bytes"]["mean"] == summary["bytes_up"] + summary["bytes_down"]

    authors = json.loads(
        cli("score", folder, "--json", "--byte-mode", "authors", "--compute-mode", "training").out
    )
    assert {row["family"]: row["bytes"]["mean"] for row in authors["groups"]}["split"] == summary[
        "bytes_authors"
    ]
    assert (authors["terms"]["byte_mode"], authors["terms"]["compute_mode"]) == ("authors", "training")


def test_one_family_is_ranked_only_when_asked(cli: Cli) -> None:
    run = cli("run", "split.toml", "--workers", "1")
    assert run.code == 0, run.err
    assert "C3" not in run.out
    assert "final B" not in run.out
    assert "mean over clients" in run.out
    assert "T = 2;" in cli("score", "runs/split", "--temperature", "2").out
    assert "score" not in json.loads(cli("report", "runs/split", "--json").out)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("84.64G", 84.64e9),
        ("26.68 T", 26.68e12),
        ("1500000", 1.5e6),
        ("1e9", 1e9),
        ("2E", 2e18),
        (".5K", 500.0),
        ("3k", 3e3),
    ],
)
def test_quantities_take_suffixes(text: str, value: float) -> None:
    assert parse_quantity(text, "--bytes-max") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "G", "0", "-3", "1e999", "3GB", "1_000", "nan", "5X"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^--macs-max .*: should be a number above 0, such as"):
        parse_quantity(text, "--macs-max")


def test_bad_options_are_one_line(cli: Cli) -> None:
    for args, word in (
        (("--bytes-max", "lots"), "--bytes-max lots: should be a number"),
        (("--byte-mode", "guessed"), "'guessed' is not one of 'measured', 'authors'"),
        ((), "runs/none: no such run record"),
    ):
        result = cli("score", "runs/none", *args)
        assert (result.code, result.out) == (2, "")
        assert word in result.err
        assert len(result.err.splitlines()) == 1
