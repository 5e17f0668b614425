from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import worker_tasks
from leanfleet.errors import DataError, WorkerError
from leanfleet.workers import Workers


@pytest.fixture(scope="module")
def shared():
    return torch.full((2,), 5.0).share_memory_()


@pytest.fixture
def pool(shared):
    with Workers(2, worker_tasks.start, (shared,)) as workers:
        yield workers


def test_workers_answer_in_order_with_one_thread_and_shared_tensors(pool, shared):
    ticks = []
    answers = [a.decode().split() for a in pool.ask([b"a", b"b"], lambda: ticks.append(1))]
    assert [a[:3] for a in answers] == [["a", "5", "1"], ["b", "5", "1"]]
    assert len({a[3] for a in answers} | {str(os.getpid())}) == 3
    assert len(ticks) == 6
    pool.ask([b"write", b"x"])
    assert float(shared[1]) == 6.0


def test_one_worker_works_in_this_process(shared):
    threads = torch.get_num_threads()
    with Workers(1, worker_tasks.start, (shared,)) as workers:
        assert workers.ask([b"a"])[0].decode().split() == ["a", "5", "1", str(os.getpid())]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("word", "message"),
    [(b"die", r"worker 1 was killed by SIGKILL"), (b"exit", "worker 1 ended with exit code 7")],
)
def test_a_death_is_noticed_while_others_work(pool, word, message):
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=message):
        pool.ask([b"sleep", word])
    assert time.monotonic() - begin < 30


def test_a_users_mistake_stays_one(pool):
    with pytest.raises(DataError, match=r"labels\.parquet has no labels"):
        pool.ask([b"a", b"mistake"])


def test_a_bug_is_told_with_its_trace(pool):
    with pytest.raises(WorkerError, match="ZeroDivisionError: oops") as caught:
        pool.ask([b"bug", b"a"])
    assert "worker_tasks.py" in caught.value.__notes__[0]


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_workers_die_with_their_parent():
    here = Path(__file__).parent
    parent = subprocess.Popen(
        [sys.executable, str(here / "worker_tasks.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(here)},
    )
    assert parent.stdout is not None
    with parent.stdout as out:
        workers = [int(pid) for pid in out.readline().split()]
    assert len(workers) == 2
    assert all(_alive(pid) for pid in workers)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 30
    while any(_alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in workers)


def test_two_workers_that_fail_together_leave_one_error_and_no_traceback(shared, capfd):
    with (
        Workers(2, worker_tasks.start, (shared,)) as workers,
        pytest.raises(WorkerError, match="ZeroDivisionError: oops"),
    ):
        workers.ask([b"bug", b"late bug"])
    assert capfd.readouterr().err == ""


def test_ctrl_c_does_not_reach_workers_that_still_import(shared):
    with Workers(2, worker_tasks.start, (shared,)) as workers:
        for process in workers._processes:
            blocked = Path(f"/proc/{process.pid}/status").read_text().split("SigBlk:\t")[1][:16]
            assert int(blocked, 16) >> (signal.SIGINT - 1) & 1
        # Their parent still hears it.
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert len(workers.ask([b"a", b"b"])) == 2
