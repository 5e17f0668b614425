"""What a command answers, and how to look at it; `cli` in conftest.py runs one in the test's own process."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    code: int
    out: str
    err: str


PROGRESS = re.compile(r"(?!error: )\S+: round \d+/")
Cli = Callable[..., Result]


def refused(result: Result, code: int, *words: str, after: bool = False) -> None:
    """Check for one line on stderr, beside progress, that begins with `error:` and names these words.

    Args:
        result: What the command answered.
        code: The exit status there should be.
        words: What the line should name.
        after: Whether something had been printed before, as it should be otherwise not.
    """
    assert result.code == code, result
    told = [line for line in result.err.splitlines() if not PROGRESS.match(line)]
    assert len(told) == 1, result.err
    assert told[0].startswith("error: ")
    for word in words:
        assert word in told[0]
    assert bool(result.out) == after
