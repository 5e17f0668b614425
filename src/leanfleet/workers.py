"""Worker processes of one machine: spawned, one thread each, asked and answered in bytes.

Nothing but bytes crosses after the start, so a worker cannot be made to unpickle anything. A worker dies with
its parent; a parent notices the death of a worker.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, parent_process, resource_tracker
from typing import Any, Protocol

import torch
import torch.multiprocessing as mp

from leanfleet import errors
from leanfleet.errors import LeanfleetError, UserError, WorkerError

Tick = Callable[[], None]
"""Called when a piece of a request is done, to show progress."""

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_RESULT, _FAILURE, _TICK = b"r", b"f", b"t"


class Handler(Protocol):
    """What a worker does with a request."""

    def __call__(self, request: bytes, tick: Tick) -> bytes:
        """Answer one request."""


def check_main() -> None:
    """Check that this is no worker process that is only just importing the user's script.

    Raises:
        UserError: It is: the script would start itself again and again.
    """
    if getattr(mp.current_process(), "_inheriting", False):
        raise UserError(
            "a worker process imports your script, which starts a run at once: put that below "
            "if __name__ == '__main__':"
        )


class Workers:
    """A fixed number of workers; with one, the work is done in this process.

    Args:
        count: Number of workers.
        start: Module-level function that builds a worker's handler, in the worker.
        args: Its arguments; tensors in shared memory stay shared.
    """

    def __init__(self, count: int, start: Callable[..., Handler], args: Sequence[Any]) -> None:
        self.count = count
        keep_kernels()
        self._processes: list[Any] = []
        self._pipes: list[connection.Connection] = []
        if count == 1:
            keep_memory()
            self._inline = start(*args)
            return
        context = mp.get_context("spawn")
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, start, tuple(args)), daemon=True)
            with interrupts_held_back():
                process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def ask(self, requests: Sequence[bytes], tick: Tick = lambda: None) -> list[bytes]:
        """Send one request to every worker and return their answers in order.

        Raises:
            WorkerError: A worker died, or failed in a way that is not the user's mistake.
            LeanfleetError: What the worker raised on purpose.
        """
        if self.count == 1:
            # What a network draws from the global stream is no business of the caller's.
            with one_thread(), torch.random.fork_rng(devices=[]):
                return [self._inline(requests[0], tick)]
        answers: dict[int, bytes] = {}
        try:
            for pipe, request in zip(self._pipes, requests, strict=True):
                pipe.send_bytes(request)
            while len(answers) < self.count:
                self._collect(answers, tick)
        except (BrokenPipeError, EOFError, ConnectionResetError) as error:
            raise self._death() from error
        return [answers[index] for index in range(self.count)]

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            # One that waits for a request ends by itself now.
            process.join(timeout=0.5)
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _collect(self, answers: dict[int, bytes], tick: Tick) -> None:
        waiting = {pipe: index for index, pipe in enumerate(self._pipes) if index not in answers}
        ready = connection.wait([*waiting, *(p.sentinel for p in self._processes)])
        for pipe, index in waiting.items():
            if pipe not in ready:
                continue
            frame = pipe.recv_bytes()
            kind, body = frame[:1], frame[1:]
            if kind == _TICK:
                tick()
            elif kind == _FAILURE:
                raise _failure(body)
            else:
                answers[index] = body
        # A worker that has answered and died since is noticed too: the next round would need it.
        if not any(pipe in ready for pipe in waiting):
            raise self._death()

    def _death(self) -> WorkerError:
        for process in self._processes:
            process.join(timeout=1)
        codes = {i: p.exitcode for i, p in enumerate(self._processes) if p.exitcode is not None}
        told = (
            ", ".join(f"worker {i} {_cause(code)}" for i, code in codes.items()) or "a worker closed its pipe"
        )
        return WorkerError(told)


def _cause(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch with one thread for a while: two processes of one thread beat one process of two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_kernels() -> None:
    """Let oneDNN compile each of the many shapes of narrow networks once, in this process and those it starts."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")


def keep_memory() -> None:
    """Let glibc keep the memory of large tensors for the next step; elsewhere, do nothing.

    It would give them back to the kernel as soon as they are freed, and ask for zeroed pages in the next step: 7.7 s
    of system time in six rounds of the FEMNIST network, against 2.0 s. Kept, a process takes some 8 % more memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Start a process that Ctrl-C does not reach: not even while it imports, long before any code of ours runs."""
    # Otherwise started together with the first process, whose mask it then clears.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: connection.Connection, start: Callable[..., Handler], args: tuple[Any, ...]) -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    keep_memory()
    torch.set_num_threads(1)
    try:
        handler = start(*args)
        while True:
            request = pipe.recv_bytes()
            pipe.send_bytes(_RESULT + handler(request, lambda: pipe.send_bytes(_TICK)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        told = {"kind": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}
        with suppress(OSError):
            # Of several workers that fail, the parent hears the first and closes the others' pipes.
            pipe.send_bytes(_FAILURE + json.dumps(told).encode())


def die_with_parent() -> None:
    """End this spawned process as soon as its parent ends, however that happens."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _failure(body: bytes) -> LeanfleetError:
    told = json.loads(body)
    kind = getattr(errors, told["kind"], None)
    if isinstance(kind, type) and issubclass(kind, LeanfleetError):
        raised: LeanfleetError = kind(told["message"])
        return raised
    error = WorkerError(f"a worker failed: {told['kind']}: {told['message']}")
    error.add_note(told["trace"])
    return error
