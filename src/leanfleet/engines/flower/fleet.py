"""The server's view of a real fleet: who is there, who is busy with what, how long the way takes."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Message as Letter
from flwr.app import RecordDict
from flwr.serverapp import Grid

from leanfleet.engines.flower.messages import REGISTER, Registration, packed
from leanfleet.engines.flower.terms import Terms
from leanfleet.errors import LeanfleetError, WireError
from leanfleet.storage import write_json

log = logging.getLogger("leanfleet.fleet")


def warn(text: str, **about: Any) -> None:
    """Log a warning, and beside it, for programs, whom and what it is about."""
    log.warning("%s", text, extra={"about": about})


STATUS = "fleet.json"
"""The file of a record that says what every device is doing."""

_KEPT = 5
_PATIENCE_ROUNDS, _SHORTEST_PATIENCE_SECONDS = 3.0, 60.0
_GRACE_ROUNDS = 0.1


@dataclass(eq=False)
class Node:
    """A registered device.

    Attributes:
        id: Its number at the SuperLink.
        device: Its number in the run.
        samples: Samples it holds, as registered: what bounds its claims.
        rate_macs_per_s: Training MAC/s of the whole network, as it last measured.
        ways: Seconds that its last answers took beyond the device's own: transport, queues and start-up.
        misses: How often in a row it has not answered in time.
        state: What it is doing.
        last: What it last reported, for those who watch.
    """

    id: int
    device: int
    samples: int
    rate_macs_per_s: float
    ways: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    misses: int = 0
    state: str = "idle"
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def allowance(self) -> float:
        """The seconds of a round to leave for the way there and back: the longest lately."""
        return max(self.ways, default=0.0)

    def seconds_of(self, whole: float, elapsed: float) -> float:
        """Return what the device has itself of a round or window that began some seconds ago.

        Never less than half: a device that was out of reach once would never get a chance to show better.
        """
        return max(whole - elapsed - self.allowance, whole / 2)

    def shown(self) -> dict[str, Any]:
        """Return what those who watch are told."""
        return {
            "node": str(self.id),
            "rate_macs_per_s": self.rate_macs_per_s,
            "state": self.state,
            **self.last,
        }


@dataclass(eq=False)
class Sent:
    """A message that is on its way, at work, or lost.

    Attributes:
        node: Number of the node at the SuperLink.
        at: When it was sent, in monotonic seconds.
        about: What the sender remembers with it; None for a registration.
    """

    node: int
    at: float
    about: Any = None


Answer = tuple[Node, Sent, RecordDict]
"""Who answered, to what, and how."""


class Fleet:
    """The nodes behind a Grid; devices register themselves when they are first seen.

    Args:
        grid: Flower's.
        terms: The run's.
        folder: The record, where those who watch are told.
        samples: Samples of every device whose share the experiment deals out.
        most_samples: The most that a device with data of its own may claim.
        round_seconds: Of three of these, or a minute, is the patience with a node that does not answer until it is
            tried again; it doubles with every miss.
    """

    def __init__(
        self,
        grid: Grid,
        terms: Terms,
        folder: Path,
        samples: Mapping[int, int],
        most_samples: int,
        round_seconds: float,
    ) -> None:
        self._grid, self._terms, self._folder = grid, terms, folder
        self._samples, self._most = samples, most_samples
        self._patience = max(_PATIENCE_ROUNDS * round_seconds, _SHORTEST_PATIENCE_SECONDS)
        self._grace, self._complete = _GRACE_ROUNDS * round_seconds, False
        # Whether answers are taken one by one, so that one that Flower cannot open takes no others with it.
        self._singly = False
        self._told: dict[str, Any] = {}
        self._sent: dict[str, Sent] = {}
        self._online: set[int] = set()
        self._greeted: dict[int, float] = {}
        self.nodes: dict[int, Node] = {}

    def gather(self, wanted: int, round: int) -> list[Answer]:
        """Wait until enough devices are free; return what is answered meanwhile, too late for its round.

        Once so many have been there, those who are busy or gone are waited for only a moment: one is enough to go on.
        Not where the terms say how many, nor on a virtual clock, where the simulation has them all.

        Args:
            wanted: How many, where the terms do not say.
            round: For the log.

        Raises:
            LeanfleetError: They do not come.
        """
        begun, told, tardy = time.monotonic(), -1, list[Answer]()
        end, grace = begun + self._terms.wait_seconds, begun + self._grace
        least = wanted = self._terms.min_devices or wanted
        if self._complete and not self._terms.min_devices and not self._terms.virtual:
            least = 1
        while True:
            self.greet()
            tardy += self.poll()
            there = len(self.free())
            self._complete |= there >= wanted
            if there >= wanted or (there >= least and time.monotonic() >= grace):
                return tardy
            if there != told:
                log.info("round %d: %d of %d devices are there", round + 1, there, wanted)
            if time.monotonic() > end:
                came = f"round {round + 1}: {there} of {wanted} devices came"
                raise LeanfleetError(f"{came}; the record can be resumed")
            told = there
            self.tell(round)
            time.sleep(self._terms.poll_seconds)

    def attend(self, round: int, take: Callable[[Answer], None], over: Callable[[], bool]) -> None:
        """Take what is answered until it is over; what is there already is in time."""
        while True:
            self.tell(round)
            for answer in self.poll():
                take(answer)
            if over():
                return
            time.sleep(self._terms.poll_seconds)

    def tell(self, round: int) -> None:
        """Write what every device is doing, for those who watch."""
        devices = {str(node.device): node.shown() for node in self.nodes.values() if node.samples}
        told = {"round": round + 1, "devices": devices}
        if told != self._told:
            write_json(self._folder / STATUS, told)
            self._told = told

    def free(self) -> dict[int, Node]:
        """Return the online devices that have samples and nothing to do, by their numbers."""
        busy = {sent.node for sent in self._sent.values()}
        found = [n for id, n in self.nodes.items() if n.samples and id in self._online and id not in busy]
        return {node.device: node for node in sorted(found, key=lambda node: node.device)}

    def send(self, node: int, kind: str, content: RecordDict, round: int, about: Any = None) -> None:
        """Send a message; its answer comes from `poll`."""
        letter = Letter(content, node, kind, group_id=str(round))
        sent = Sent(node, time.monotonic(), about)
        for message_id in self._grid.push_messages([letter]):
            if message_id:
                self._sent[message_id] = sent
                return
        self._failed(sent, "the SuperLink does not take a message for it")

    def greet(self) -> None:
        """Ask nodes that are not registered to do so; one that fails is asked again after a while."""
        self._online, now = set(self._grid.get_node_ids()), time.monotonic()
        for node in sorted(self._online - self.nodes.keys()):
            if now - self._greeted.get(node, -math.inf) > self._patience:
                self._greeted[node] = now
                self.send(node, REGISTER, packed({}), 0)

    def poll(self) -> list[Answer]:
        """Return what has been answered since, registrations dealt with, failures named in the log."""
        answers = []
        for letter in self._pulled():
            sent = self._sent.pop(letter.metadata.reply_to_message_id, None)
            if sent is None:
                continue
            if letter.has_error():
                self._failed(sent, letter.error.reason)
            elif sent.about is None:
                self._register(sent, letter.content)
            elif node := self.nodes.get(sent.node):
                node.misses, node.state = 0, "idle"
                answers.append((node, sent, letter.content))
        self._forget()
        return answers

    def _pulled(self) -> list[Letter]:
        """Return what has come. A node can make Flower stumble over what it sends."""
        waiting, found = list(self._sent), list[Letter]()
        for ids in [[one] for one in waiting] if self._singly else [waiting] if waiting else []:
            try:
                found += self._grid.pull_messages(ids)
            except Exception as error:
                # Whoever else answered just now is asked again when patience with it runs out.
                self._singly = True
                warn(f"an answer cannot be opened: {error}", error=type(error).__name__)
                if len(ids) == 1:
                    self._failed(self._sent.pop(ids[0]), "its answer cannot be opened")
        return found

    def learn(self, node: Node, sent: Sent, seconds: float, rate_macs_per_s: float) -> None:
        """Learn a device's rate, and how long the way took from the seconds that it says it took itself."""
        elapsed = time.monotonic() - sent.at
        node.ways.append(max(elapsed - seconds, 0.0))
        node.rate_macs_per_s = rate_macs_per_s

    def _register(self, sent: Sent, content: RecordDict) -> None:
        try:
            told = Registration.read(content)
            node = Node(sent.node, told.device, self._registered(told), told.rate_macs_per_s)
        except WireError as error:
            warn(f"node {sent.node} is not taken in: {error}", node=str(sent.node), refused=str(error))
            return
        for id, other in list(self.nodes.items()):
            if other.device == node.device:
                del self.nodes[id]
        self.learn(node, sent, told.seconds, told.rate_macs_per_s)
        self.nodes[sent.node] = node
        log.info(
            "device %d registered: node %d, %d samples, %.3g MAC/s, %.1f s on the way",
            node.device, node.id, node.samples, node.rate_macs_per_s, node.allowance,
            extra={"about": {"device": node.device, "node": str(node.id), "samples": node.samples}},
        )  # fmt: skip

    def _registered(self, told: Registration) -> int:
        if told.device not in self._samples:
            raise WireError(f"device {told.device} is none of the {len(self._samples)} of the experiment")
        holder = next((n for n in self.nodes.values() if n.device == told.device), None)
        if holder is not None and holder.id in self._online:
            raise WireError(f"device {told.device} is node {holder.id} already")
        if not told.own:
            return self._samples[told.device]
        if not 0 < told.samples <= self._most:
            raise WireError(f"claims {told.samples} samples where most-samples is {self._most}")
        return told.samples

    def _failed(self, sent: Sent, reason: str | None) -> None:
        node = self.nodes.get(sent.node)
        name = f"node {sent.node}" if node is None else f"device {node.device}"
        warn(f"{name} failed: {reason}", node=str(sent.node), failed=reason)
        if node is not None:
            node.state = "failed"

    def _forget(self) -> None:
        """Give up waiting for nodes that have been silent for too long, so that they are tried again."""
        now = time.monotonic()
        for message_id, sent in list(self._sent.items()):
            node = self.nodes.get(sent.node)
            if now - sent.at <= self._patience * 2 ** (0 if node is None else node.misses):
                continue
            del self._sent[message_id]
            if node is not None:
                node.misses, node.state = node.misses + 1, "silent"
