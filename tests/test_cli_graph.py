"""`leanfleet graph` through the real command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import Cli, refused


def values(out: str) -> dict[str, str]:
    """Return the first table of what was printed, by the words of its left column."""
    lines = [line.rstrip().split("  ") for line in out.split("\n\n")[0].splitlines()[2:]]
    return {cells[0]: cells[-1].strip() for cells in lines}


def test_a_ring_is_shown_and_drawn(cli: Cli) -> None:
    result = cli("graph", "ring")
    assert (result.code, result.err) == (0, "")
    assert "\x1b" not in result.out
    shown = values(result.out)
    assert (shown["graph"], shown["nodes"], shown["period"]) == ("ring", "8", "1 step (static)")
    assert shown["links per step"] == "8"
    assert shown["strongly connected within"] == "1 step"
    assert shown["spectral gap per step"] == f"{1 - math.cos(math.pi / 8):.6f}"
    assert shown["the same by the spectral gap"] == "88"
    assert 70 <= int(shown["rounds to consensus (1/1,000), measured"]) <= 88
    assert shown["push-sum weights"] == "1 at all nodes"
    assert result.out.splitlines()[-1] == "plot: graph.png"
    assert Path("graph.png").read_bytes().startswith(b"\x89PNG")


def test_json_says_it_all(cli: Cli) -> None:
    result = cli("graph", "exponential", "--nodes", "8", "-o", "net.png", "--json")
    assert (result.code, result.err) == (0, "")
    told: dict[str, Any] = json.loads(result.out)
    assert (told["graph"], told["nodes"], told["seed"], told["period"]) == ("exponential", 8, 0, 3)
    assert told["links"] == [8, 8, 8]
    assert told["out_degrees"] == told["in_degrees"] == [[1] * 8] * 3
    assert (told["second_eigenvalue"], told["spectral_gap"], told["shortest_window"]) == (0, 1, 3)
    assert told["final_rounds"] == told["consensus"]["steps"] == 3
    assert told["doubly_stochastic"] is True
    assert told["plot"] == "net.png"
    assert Path("net.png").exists()


def test_random_graphs_follow_the_seed(cli: Cli) -> None:
    told = [json.loads(cli("graph", "random(3)", "--seed", seed, "--json").out) for seed in ("1", "1", "2")]
    assert told[0] == told[1]
    assert told[0]["out_degrees"] != told[2]["out_degrees"]
    assert told[0]["doubly_stochastic"] is False
    shown = cli("graph", "random(3)", "--seed", "1").out
    low, high = (told[0]["consensus"][key] for key in ("weight_low", "weight_high"))
    assert values(shown)["push-sum weights"] == f"{low:.3g} to {high:.3g}"


def test_nodes_with_the_same_degrees_share_a_line(cli: Cli) -> None:
    Path("star.csv").write_text("step,from,to\n0,0,1\n0,0,2\n0,0,3\n1,1,0\n1,2,0\n1,3,0\n")
    result = cli("graph", "file:star.csv", "--nodes", "4")
    assert result.code == 0, result.err
    lines = [" ".join(line.split()) for line in result.out.split("degrees")[1].splitlines()[3:5]]
    assert lines == ["0 0 to 3 0 to 3", "1, 2 and 3 0 to 1 0 to 1"]
    # So many different degrees are told in a line or two.
    many = cli("graph", "random(0.5)", "--nodes", "60").out
    assert len(many.split("degrees")[1].splitlines()) < 27
    assert "all" in cli("graph", "random(0.5)", "--nodes", "150").out.split("degrees")[1]


def test_a_slow_graph_is_told_to_be_so(cli: Cli) -> None:
    result = cli("graph", "ring", "--nodes", "32")
    assert values(result.out)["the same by the spectral gap"] == "1,432"
    assert "rounds are many: take another graph for a dense final phase, such as exponential" in result.out
    slower = cli("graph", "ring", "--nodes", "200").out
    assert values(slower)["rounds to consensus (1/1,000), measured"] == "more than 10,000"
    assert "\nmore than 10,000 rounds are many" in slower
    assert "are many" not in cli("graph", "exponential", "--nodes", "32").out


def test_a_small_terminal_is_enough(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    result = cli("graph", "exponential", "--nodes", "6")
    assert max(map(len, result.out.splitlines())) <= 40
    assert "0.399532" in result.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("rnig",), ("'rnig' is unknown", "did you mean 'ring'")),
        (("torus(2x5)",), ("'torus(2x5)' is for 10 nodes, not 8",)),
        (("ring", "--nodes", "1"), ("--nodes",)),
        (("ring", "--window", "0"), ("--window",)),
        (("ring", "-o", "net.pdf"), ("-o net.pdf", "such as net.png")),
        (("ring", "-o", "."), ("-o .", "such as net.png")),
        (("file:no.csv",), ("no.csv: cannot be read: No such file",)),
        (
            ("exponential", "--window", "2"),
            ("nodes 1, 3, 5 and 7 cannot be reached from nodes 0, 2, 4 and 6",),
        ),
        ((), ("Missing argument", "leanfleet graph --help")),
    ],
)
def test_what_is_wrong_is_said_in_one_line(cli: Cli, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = cli("graph", *args)
    refused(result, 2, *words)
    assert result.out == ""
    assert not list(Path().iterdir())


def test_links_that_do_not_add_up_are_named_with_their_file(cli: Cli) -> None:
    Path("links.csv").write_text("step,from,to\n0,0,1\n1,1,0\n")
    refused(
        cli("graph", "file:links.csv", "--nodes", "3"), 2, "file:links.csv", "cannot be reached from node 2"
    )
    Path("links.csv").write_text("step,from,to\n0,0,1\n0,0,9\n")
    refused(cli("graph", "file:links.csv", "--nodes", "3"), 2, "links.csv, line 3: no node 9")


def test_a_window_that_is_long_enough_passes(cli: Cli) -> None:
    assert cli("graph", "exponential", "--window", "3").code == 0


def test_numbers_are_printed_where_the_drawing_cannot_be_written(cli: Cli) -> None:
    result = cli("graph", "ring", "-o", "no/net.png")
    refused(result, 1, "no/net.png: cannot be written", after=True)
    assert values(result.out)["nodes"] == "8"


def test_without_matplotlib_there_are_numbers_and_no_drawing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanfleet.report.can_draw", lambda: False)
    result = cli("graph", "ring")
    assert result.out.splitlines()[-1] == "no plot: it needs matplotlib; pip install 'leanfleet[plots]'"
    assert json.loads(cli("graph", "ring", "--json").out)["plot"] is None
    assert not list(Path().iterdir())


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, leanfleet.cli.graph as g; print(sorted({'torch', 'numpy', 'networkx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
