from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leanfleet import runs
from leanfleet.errors import RecordError, StorageError
from leanfleet.runs import Checkpoint, Run

TOML = '[experiment]\nname = "x"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def tensors_of(round: int) -> dict[str, Tensor]:
    return {"w": torch.full((3, 5), float(round)), "n": torch.tensor(round)}


def play(run: Run, round: int) -> None:
    """One round as an engine does it."""
    run.event(round=round, accuracy=round / 100)
    run.checkpoint(round, tensors_of(round), {"round": round, "ledger": {"macs": 3e9}})


def started(root: Path, rounds: int = 0, name: str = "x") -> Run:
    with Run.create(name, TOML, root) as run:
        for round in range(1, rounds + 1):
            play(run, round)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(checkpoint: Checkpoint | None, round: int) -> bool:
    """Whether this is what `play` saved."""
    if checkpoint is None:
        return round == 0
    expected = tensors_of(round)
    return (
        checkpoint.round == checkpoint.state["round"] == round
        and checkpoint.tensors.keys() == expected.keys()
        and all(torch.equal(checkpoint.tensors[name], expected[name]) for name in expected)
    )


def test_a_new_record_is_there_before_the_first_round(root: Path) -> None:
    with Run.create("x", TOML, root) as run:
        assert run.folder == root / "x"
        assert run.name == "x"
        assert run.experiment_file.read_text() == TOML
        assert run.events() == []
        assert run.restore() is None
        assert run.latest() is None
        assert run.summary() is None
        assert not run.finished


def test_a_number_is_appended_to_a_name_that_is_taken(root: Path) -> None:
    names = [Run.create("x", TOML, root).name for _ in range(3)]
    (root / "y").write_text("a file of the user's")
    names.append(Run.create("y", TOML, root).name)
    assert names == ["x", "x-2", "x-3", "y-2"]


def test_the_experiment_can_be_written_anew(root: Path) -> None:
    with Run.create("x", TOML, root) as run:
        run.replace_experiment("[experiment]\n")
        assert Run.open(run.folder).experiment_file.read_text() == "[experiment]\n"


@given(rounds=st.integers(0, 6), after=st.integers(0, 3), torn=st.binary(max_size=30))
@settings(max_examples=25)
def test_restore_goes_back_to_the_last_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, rounds: int, after: int, torn: bytes
) -> None:
    folder = started(tmp_path_factory.mktemp("runs"), rounds).folder
    lost = b"".join(b'{"round": %d}\n' % (rounds + k) for k in range(1, after + 1))
    with (folder / "events.jsonl").open("ab") as file:
        file.write(lost + torn.replace(b"\n", b""))
    with Run.open(folder) as run:
        assert len(run.events()) == rounds + after
        assert same(run.latest(), rounds)
        assert same(run.restore(), rounds)
        assert [event["round"] for event in run.events()] == list(range(1, rounds + 1))
        play(run, rounds + 1)
        assert same(run.latest(), rounds + 1)
        assert len(run.events()) == rounds + 1


def test_only_the_last_two_checkpoints_are_kept(root: Path) -> None:
    run = started(root, rounds=4)
    names = sorted(path.name for path in run.folder.glob("*.safetensors"))
    assert names == ["checkpoint-3.safetensors", "checkpoint-4.safetensors"]


class PowerCut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["save_tensors", "write_json", "_blake2b"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_process_may_end_between_any_two_writes(
    root: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str, rounds: int
) -> None:
    run = started(root, rounds)
    original = getattr(runs, step)

    def cut(*args: Any) -> None:
        if when == "after":
            original(*args)
        raise PowerCut

    with run:
        run.restore()
        monkeypatch.setattr(runs, step, cut)
        with pytest.raises(PowerCut):
            play(run, rounds + 1)
        monkeypatch.undo()
    arrived = rounds + (step == "write_json" and when == "after")
    with Run.open(run.folder) as again:
        assert same(again.restore(), arrived)
        assert len(again.events()) == arrived
        play(again, arrived + 1)
    assert len(list(run.folder.glob("*.safetensors"))) == min(2, arrived + 1)


def test_what_a_killed_process_left_half_written_is_tidied_up(root: Path) -> None:
    run = started(root, rounds=1)
    (run.folder / ".checkpoint-2.safetensors.123.tmp").write_bytes(b"half")
    with run:
        run.restore()
        play(run, 2)
    assert not list(run.folder.glob(".*.tmp"))


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_checkpoint_cut_short_is_named_and_the_record_left_alone(root: Path, size: int) -> None:
    run = started(root, rounds=3)
    path = run.folder / "checkpoint-3.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    before = contents(run.folder)
    cut = f"{path}: damaged: it has {len(whole[:size])} bytes, not {len(whole)}"
    with pytest.raises(RecordError) as caught:
        run.restore()
    assert str(caught.value) == f"{cut}; delete it to go on from checkpoint-2.safetensors"
    assert contents(run.folder) == before
    path.unlink()
    with Run.open(run.folder) as again:
        assert same(again.restore(), 2)
        assert len(again.events()) == 2
        play(again, 3)
        assert same(again.latest(), 3)


def test_a_checkpoint_with_a_flipped_bit_is_named(root: Path) -> None:
    run = started(root, rounds=1)
    path = run.folder / "checkpoint-1.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        RecordError, match=r"checkpoint-1.safetensors: damaged: its content is not what was saved$"
    ):
        run.restore()


def test_without_any_named_checkpoint_the_record_is_damaged(root: Path) -> None:
    run = started(root, rounds=1)
    (run.folder / "checkpoint-1.safetensors").unlink()
    with pytest.raises(RecordError, match=r"state.json: names checkpoint-1.safetensors, which is missing"):
        run.restore()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("state.json", "{", "state.json: damaged: "),
        ("state.json", "[]", "state.json: damaged: not a JSON object"),
        ("state.json", "{}", "state.json: damaged: checkpoints: Field required"),
        (
            "state.json",
            '{"checkpoints": []}',
            "state.json: damaged: checkpoints: Tuple should have at least 1 item",
        ),
        ("events.jsonl", "", "events.jsonl: cut short: 0 of "),
    ],
)
def test_a_damaged_file_is_named(root: Path, file: str, text: str, message: str) -> None:
    run = started(root, rounds=2)
    (run.folder / file).write_text(text)
    before = contents(run.folder)
    with pytest.raises(RecordError, match=message) as caught:
        run.restore()
    assert "\n" not in str(caught.value)
    assert contents(run.folder) == before


def test_state_cannot_point_out_of_the_record(root: Path) -> None:
    run = started(root, rounds=1)
    state = run.folder / "state.json"
    state.write_text(state.read_text().replace('"checkpoint-1', '"../x/checkpoint-1'))
    with pytest.raises(RecordError, match=r"state.json: damaged"):
        run.latest()


def test_a_damaged_event_is_named_by_its_line(root: Path) -> None:
    run = started(root, rounds=3)
    lines = (run.folder / "events.jsonl").read_text().splitlines()
    (run.folder / "events.jsonl").write_text("\n".join([lines[0], lines[1][:5], lines[2], ""]))
    with pytest.raises(RecordError, match=r"events.jsonl: line 2: damaged"):
        run.events()


def test_a_finished_run_says_so(root: Path) -> None:
    with Run.create("x", TOML, root) as run:
        run.finish({"accuracy": 0.9, "energy_joules": None})
    again = Run.open(str(run.folder))
    assert again.finished
    assert again.summary() == {"accuracy": 0.9, "energy_joules": None}
    (run.folder / "summary.json").write_text('{"accuracy":')
    with pytest.raises(RecordError, match=r"summary.json: damaged"):
        again.summary()


def test_what_is_no_record_is_refused(root: Path) -> None:
    started(root, name="digits")
    (root / "empty").mkdir()
    with pytest.raises(RecordError, match=r"digit: no such run record; did you mean 'digits'\?"):
        Run.open(root / "digit")
    with pytest.raises(RecordError, match=r"elsewhere: no such run record$"):
        Run.open(root / "nowhere" / "elsewhere")
    with pytest.raises(RecordError, match=r"empty: not a run record"):
        Run.open(root / "empty")


def test_a_reader_does_not_write(root: Path) -> None:
    run = Run.open(started(root).folder)
    with pytest.raises(RuntimeError, match=r"restore"):
        run.event(round=1)


def test_one_process_at_a_time_writes(root: Path) -> None:
    with Run.create("x", TOML, root) as run:
        other = Run.open(run.folder)
        assert other.events() == []
        with pytest.raises(RecordError, match=r"x: in use by another process"):
            other.restore()
        play(run, 1)
    assert same(other.restore(), 1)
    with pytest.raises(RecordError, match=r"in use"):
        Run.open(run.folder).restore()
    del other
    gc.collect()
    assert same(Run.open(run.folder).restore(), 1)


def test_a_failed_restore_lets_go_of_the_record(root: Path) -> None:
    run = started(root, rounds=1)
    damaged = run.folder / "state.json"
    text = damaged.read_text()
    damaged.write_text("")
    with pytest.raises(RecordError, match=r"damaged"):
        run.restore()
    damaged.write_text(text)
    assert same(Run.open(run.folder).restore(), 1)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: the kernel then refuses in the middle of a write, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_record_whole(root: Path) -> None:
    with Run.create("x", TOML, root) as run:
        play(run, 1)
        before = contents(run.folder)
        with full_disk(len(before["events.jsonl"]) + 10):
            with pytest.raises(StorageError, match=r"events.jsonl: cannot be written: File too large"):
                run.event(round=2, note="longer than ten bytes")
            with pytest.raises(StorageError, match=r"checkpoint-2.safetensors: cannot be written"):
                run.checkpoint(2, tensors_of(2), {})
            with pytest.raises(StorageError, match=r"summary.json: cannot be written"):
                run.finish({"note": "x" * 1000})
        assert contents(run.folder) == before
        assert same(run.restore(), 1)
        play(run, 2)
        assert [event["round"] for event in run.events()] == [1, 2]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match=r"x: cannot be written: File exists"):
        Run.create("x", TOML, tmp_path / "runs")


WRITER = """
import sys
from pathlib import Path
import torch
from leanfleet.runs import Run
with Run.open(Path(sys.argv[1])) as run:
    found = run.restore()
    print("ready", flush=True)
    for round in range(found.round + 1 if found else 1, 100_000):
        run.event(round=round, accuracy=round / 100)
        tensors = {"w": torch.full((3, 5), float(round)), "n": torch.tensor(round)}
        run.checkpoint(round, tensors, {"round": round})
"""


def test_killed_at_any_moment_a_record_is_whole_and_free(root: Path) -> None:
    folder = started(root).folder
    for written in (1, 40, 7):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            seen = len(Run.open(folder).events())
            with pytest.raises(RecordError, match=r"in use"):
                Run.open(folder).restore()
            while len(Run.open(folder).events()) < seen + written:
                pass
            os.kill(process.pid, signal.SIGKILL)
        with Run.open(folder) as run:
            found = run.restore()
            assert same(found, found.round if found else 0)
            assert [event["round"] for event in run.events()] == list(
                range(1, (found.round if found else 0) + 1)
            )


RACER = """
import sys
from pathlib import Path
from leanfleet.runs import Run
for _ in range(20):
    print(Run.create("x", "", Path(sys.argv[1])).name)
"""


def test_two_processes_never_get_the_same_folder(root: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(root)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    names = [name for racer in racers for name in racer.communicate()[0].split()]
    assert len(set(names)) == len(names) == 40


def test_several_records_go_back_to_the_round_they_have_in_common(root: Path) -> None:
    run = started(root, 3)
    with Run.open(run.folder) as again:
        assert same(again.restore(at=2), 2)
        assert [event["round"] for event in again.events()] == [1, 2]
        play(again, 3)
    assert same(Run.open(run.folder).latest(), 3)


def test_round_0_is_the_start(root: Path) -> None:
    run = started(root, 3)
    with Run.open(run.folder) as again:
        assert again.restore(at=0) is None
        assert again.events() == []
        play(again, 1)
    assert same(Run.open(run.folder).latest(), 1)


@pytest.mark.parametrize("at", [1, 4])
def test_a_round_that_is_not_kept_is_said(root: Path, at: int) -> None:
    run = started(root, 3)
    before = contents(run.folder)
    with pytest.raises(RecordError, match=f"has no checkpoint of round {at} any more"):
        Run.open(run.folder).restore(at=at)
    assert contents(run.folder) == before
