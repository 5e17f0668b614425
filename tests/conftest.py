import os
import signal

import pytest
import torch
from hypothesis import settings

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
