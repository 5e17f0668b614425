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


@pytest.fixture(scope="session", autouse=True)
def interrupts_can_be_heard() -> None:
    """A shell starts what runs in the background with Ctrl-C ignored, and children would inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
