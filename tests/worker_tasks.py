"""What the workers of `test_workers.py` do; spawned processes import it by name."""

from __future__ import annotations

import os
import signal
import time

import torch

from leanfleet.errors import DataError
from leanfleet.workers import Handler, Tick


def start(shared: torch.Tensor) -> Handler:
    def handle(request: bytes, tick: Tick) -> bytes:
        word = request.decode()
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "exit":
            os._exit(7)
        if word == "mistake":
            raise DataError("labels.parquet has no labels")
        if word == "late bug":
            time.sleep(0.2)
        if word.endswith("bug"):
            raise ZeroDivisionError("oops")
        if word == "sleep":
            time.sleep(60)
        if word == "write":
            shared[1] += 1
        for _ in range(3):
            tick()
        return f"{word} {float(shared[0]):g} {torch.get_num_threads()} {os.getpid()}".encode()

    return handle


def hold(count: int) -> None:
    """Start workers, print their process ids, and wait: for the test that kills their parent."""
    from leanfleet.workers import Workers

    with Workers(count, start, (torch.ones(2).share_memory_(),)) as pool:
        answers = pool.ask([b"hello"] * count)
        print(*[answer.split()[-1].decode() for answer in answers], flush=True)
        pool.ask([b"sleep"] * count)


if __name__ == "__main__":
    hold(2)
