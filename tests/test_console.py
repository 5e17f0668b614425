from __future__ import annotations

import re
from pathlib import Path

import pytest

from leanfleet import console
from leanfleet.console import Display, describe, print_tables, simple_table
from leanfleet.engines.local import Progress
from leanfleet.errors import StorageError, UserError, WorkerError

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def progress(round: int, share: float = 0.0, run: str = "distreal-s0", rounds: int = 10) -> Progress:
    return Progress(run, round, rounds, share, 0.931 if round else None, 60.0 * round, 0.12)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_how_far_a_run_is() -> None:
    assert describe(progress(0), None) == "round 0/10, acc -, 0 s virtual, 12% late, ETA -:--"
    text = describe(progress(3), 3725.0)
    assert text == "round 3/10, acc 93.1%, 180 s virtual, 12% late, ETA 1:02:05"
    assert len(describe(progress(999, rounds=1000), 59.6, short=True)) < 34


def test_rounds_after_the_last_one_have_a_time_of_their_own(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(Path("runs")) as display:
        for step in range(5):
            display(progress(10, share=0.1 * (step + 1)))
            clock[0] += 5.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("distreal-s0: final rounds 50%, acc 93.1%")
    # 25 seconds for the four tenths that were seen.
    assert lines[-1].endswith("ETA 0:31")


def test_what_others_say_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables([simple_table(None, ("device", "state"), [("1", "[/x] [bold]no[/bold]")])])
    assert "[/x] [bold]no[/bold]" in capsys.readouterr().out


def test_a_pipe_gets_a_line_every_few_seconds_and_the_last(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(Path("runs")) as display:
        for round in range(11):
            display(progress(round))
            clock[0] += 2.0
    lines = capsys.readouterr().err.splitlines()
    rounds = [int(re.search(r"round (\d+)/10", line)[1]) for line in lines]  # type: ignore[index]
    assert rounds == [3, 6, 9, 10]
    # From round 0 at 0 s to round 3 at 6 s: 2 s a round, 7 are left.
    assert lines[0] == "distreal-s0: round 3/10, acc 93.1%, 180 s virtual, 12% late, ETA 0:14"


def test_the_time_left_counts_from_where_a_run_was_resumed(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(Path("runs")) as display:
        display(progress(8))
        clock[0] += 1000.0  # workers start, and one device takes part
        display(progress(8, 0.25))
        clock[0] += 5.0
        display(progress(8, 0.5))
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.endswith("ETA -:--")
    assert last.endswith("ETA 0:30")


def test_of_several_runs_it_says_which(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Display(Path("runs/c"), ["a-s0", "b-s0"], Path("runs/c")) as display:
        display(progress(10, run="a-s0"))
        display(progress(10, run="b-s0"))
    assert capsys.readouterr().err.startswith("run 2/2 b-s0: round 10/10")


@pytest.mark.parametrize("columns", [20, 40, 80, 140])
def test_a_bar_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ["a-very-long-name-federated-dropout-s0", "b"]
    with Display(Path("runs"), names) as display:
        display(progress(3, 0.5, names[0]))
    lines = re.split(r"[\r\n]+", ANSI.sub("", capsys.readouterr().err))
    assert max(map(len, lines)) <= columns
    if columns >= 40:
        assert any("3/10 93.1%" in line or "round 3/10, acc 93.1%" in line for line in lines)


def end_with(error: BaseException, *shown: Progress, root: str = "runs") -> None:
    with Display(Path(root)) as display:
        for one in shown:
            display(one)
        raise error


def test_an_interrupted_run_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        end_with(KeyboardInterrupt(), progress(3), root="my runs")
    assert ended.value.code == 130
    kept = "interrupted; my runs/distreal-s0 is kept, go on with: leanfleet resume 'my runs/distreal-s0'\n"
    assert capsys.readouterr().err == kept


def test_before_there_is_a_record_it_promises_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        end_with(KeyboardInterrupt())
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("kind", [WorkerError, StorageError])
def test_what_can_be_resumed_says_so(kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^worker 1 died; go on with: leanfleet resume runs/distreal-s0$"):
        end_with(kind("worker 1 died"), progress(3))


def test_the_users_mistakes_are_passed_on_as_they_are() -> None:
    with pytest.raises(UserError, match=r"^wrong$"):
        end_with(UserError("wrong"), progress(3))


def test_tables_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables([simple_table("t", ("name", "a", "b"), [("x" * 50, 1, "y" * 50)])])
    assert "x" * 50 + "  1" in capsys.readouterr().out
