import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from command_line import Cli, Result

# A busy machine is no failure: no example is timed.
settings.register_profile("leanfleet", deadline=None)
settings.load_profile("leanfleet")

# What runs tests side by side sets it, and tables would follow.
os.environ.pop("COLUMNS", None)

# As in a worker: on few cores, threads that wait for each other cost more than they bring.
torch.set_num_threads(1)


# Whose processes mostly wait: begun last, they would keep everybody waiting.
_LONG = ("test_superlink.py", "test_local.py", "test_studies.py", "test_peers.py", "test_search_study.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


@pytest.fixture(scope="session", autouse=True)
def interrupts_can_be_heard() -> None:
    """A shell starts what runs in the background with Ctrl-C ignored, and children would inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Run a command in this process, in a folder of its own; it is the process's own entry point."""
    from leanfleet.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*args: str) -> Result:
        monkeypatch.setenv("LEANFLEET_DEBUG", "")
        monkeypatch.setattr(sys, "argv", ["leanfleet", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        return Result(int(ended.value.code or 0), *capsys.readouterr())

    yield call
    # Another test may have other files of the same name.
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]
