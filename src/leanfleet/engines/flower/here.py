"""What a device knows of itself in the middle of one message, whatever it is asked to train."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from leanfleet.engines.flower.messages import REGISTER, Registration, Values
from leanfleet.engines.hardware.caps import Caps
from leanfleet.engines.hardware.measuring import Profile
from leanfleet.errors import UserError
from leanfleet.workers import keep_kernels, keep_memory

_PROFILE = "leanfleet-profile"
_PROCESS = "flwr-clientapp"


@dataclass(frozen=True)
class Here:
    """A device in the middle of one message; this process is held to what its owner allows.

    Attributes:
        context: Flower's: the node's configuration and its state.
        device: Which device of the experiment it is.
        caps: What its owner allows.
        arrived: When the message arrived, in monotonic seconds.
    """

    context: Context
    device: int
    caps: Caps
    arrived: float

    @classmethod
    def of(cls, context: Context) -> Here:
        """Read the node's configuration.

        Raises:
            UserError: It does not say which device this is, or makes no sense.
        """
        arrived, config = _arrival(), context.node_config
        device = config.get("partition-id")
        if not isinstance(device, int) or device < 0:
            raise UserError("node configuration: say which device this is, such as partition-id=0")
        caps = Caps.of(config)
        caps.apply()
        keep_kernels()
        keep_memory()
        return cls(context, device, caps, arrived)

    @property
    def virtual(self) -> bool:
        """Whether the device only pretends to be as slow as the experiment has it."""
        return self.context.run_config.get("clock") == "virtual"

    def age(self) -> float:
        """Return the seconds since the message arrived."""
        return time.monotonic() - self.arrived

    def may_train(self, seconds: float) -> bool:
        """Wait while the owner wants no training; return whether that ended within so many seconds of the arrival."""
        while self.caps.paused() and self.age() < seconds:
            time.sleep(1.0)
        return self.age() < seconds

    def check_is_one_of(self, devices: int) -> None:
        """Check that the experiment has a share for this device.

        Raises:
            UserError: It has not.
        """
        if self.device >= devices:
            raise UserError(f"node configuration: partition-id={self.device}: there are {devices} devices")

    @property
    def measured(self) -> bool:
        """Whether anything was measured before."""
        return _PROFILE in self.context.state.config_records

    def profile(self, measure: Callable[[], Profile]) -> Profile:
        """Return what was measured before, or measure now."""
        if self.measured:
            return Profile(**self.context.state.config_records[_PROFILE])  # type: ignore[arg-type]
        found = measure()
        self.keep(found)
        return found

    def keep(self, profile: Profile) -> None:
        """Keep what has been measured for the messages to come."""
        self.context.state[_PROFILE] = ConfigRecord(profile.state())


class Answering(Protocol):
    """A device in the middle of one message, whatever its family."""

    def registration(self) -> Registration:
        """Return what it says of itself."""

    def answer(self, content: RecordDict) -> tuple[Values, bytes]:
        """Do what it is asked to; return what it says of that, and what it sends."""


def answering(device: Callable[[Context], Answering]) -> ClientApp:
    """Return the ClientApp that registers and answers as devices do which a function makes for every message."""
    made = ClientApp()

    @made.query(REGISTER.partition(".")[2])
    def register(message: Message, context: Context) -> Message:
        return Message(device(context).registration().packed(), reply_to=message)

    @made.train()
    def train(message: Message, context: Context) -> Message:
        told, up = device(context).answer(message.content)
        return Message(told.packed(up), reply_to=message)

    return made


def _arrival() -> float:
    """Return when this message arrived, as far as this process can know, in monotonic seconds.

    Of a process that Flower started for the message, that is its own start: importing torch takes its time too.
    """
    now = time.monotonic()
    if Path(sys.argv[0]).name != _PROCESS:
        return now
    import psutil

    return now - max(0.0, time.time() - float(psutil.Process().create_time()))
