"""Our messages inside Flower's: bytes of `leanfleet.wire` in one array, a few plain values beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from leanfleet.errors import WireError

REGISTER, TRAIN = "query.register", "train"

MOST = 1e18
"""No number that a device says is larger: MACs, samples, rates, losses."""

_VALUES, _PAYLOAD = "leanfleet", "payload"
_LONGEST = 500


def packed(values: Mapping[str, Any], payload: bytes = b"") -> RecordDict:
    """Return values and payload as Flower carries them; an array travels in pieces, other records whole."""
    records = RecordDict({_VALUES: ConfigRecord(dict(values))})
    if payload:
        put(records, _PAYLOAD, payload)
    return records


def payload_of(content: RecordDict) -> bytes:
    """Return the payload of a message, empty if it has none.

    Raises:
        WireError: It is not one of ours.
    """
    return take(content, _PAYLOAD)


def put(records: RecordDict, name: str, data: bytes) -> None:
    """Put bytes among records, of a message or of a node's state."""
    records[name] = ArrayRecord({_PAYLOAD: Array("uint8", (len(data),), "leanfleet", data)})


def take(records: RecordDict, name: str) -> bytes:
    """Return what was `put` among records, empty if there is nothing.

    Raises:
        WireError: There is something else.
    """
    arrays = records.array_records.get(name)
    if arrays is None:
        return b""
    if set(arrays) != {_PAYLOAD}:
        raise WireError("not a message of ours: its payload is not one array")
    return arrays[_PAYLOAD].data


@dataclass(frozen=True)
class Values:
    """The plain values of one kind of message; a subclass says which."""

    def packed(self, payload: bytes = b"") -> RecordDict:
        """Return a message with these values."""
        return packed(vars(self), payload)

    @classmethod
    def read(cls, content: RecordDict) -> Self:
        """Return the values of a message.

        Raises:
            WireError: One is missing, too many, of another type, negative, beyond all use, or very long.
        """
        found = dict(content.config_records.get(_VALUES, {}))
        fields = {name: field.type for name, field in cls.__dataclass_fields__.items()}
        if found.keys() != fields.keys():
            raise WireError(f"its values are {sorted(found)} instead of {sorted(fields)}")
        for name, value in found.items():
            if type(value).__name__ != fields[name]:
                raise WireError(f"{name} is a {type(value).__name__}, not a {fields[name]}")
            if isinstance(value, int | float) and not 0 <= value <= MOST:
                raise WireError(f"claims a {name} of {value}")
            if isinstance(value, str) and len(value) > _LONGEST:
                raise WireError(f"a {name} of {len(value)} characters")
        return cls(**found)


@dataclass(frozen=True)
class Registration(Values):
    """What a device says of itself before its first round.

    Attributes:
        device: Its number.
        own: Whether it brings its own data instead of a share of the experiment's.
        samples: Samples it processes in a round, over all local epochs.
        rate_macs_per_s: Training MAC/s of the whole network, as measured.
        seconds: From the message's arrival to the answer.
    """

    device: int
    own: bool
    samples: int
    rate_macs_per_s: float
    seconds: float


@dataclass(frozen=True)
class Task(Values):
    """What a device is asked to do in a round, beside the payload.

    Attributes:
        round: The round, from 0.
        start: When it started on the virtual clock; 0 where real time counts.
        seconds: Time from the message's arrival to the device's deadline.
    """

    round: int
    start: float
    seconds: float


@dataclass(frozen=True)
class Result(Values):
    """What a device did in a round, beside the payload.

    Attributes:
        macs: Training MACs it spent.
        available_macs: Training MACs it could have spent.
        late: Whether work was left undone.
        finished_at: When it was done, on the clock of `Task`.
        rate_macs_per_s: Training MAC/s of the whole network, as last measured.
        kept: Channels that its last step kept of every group, a little-endian uint16 each; empty without a step.
        seconds: From the message's arrival to the answer.
        state: "done", or why it did not train.
    """

    macs: float
    available_macs: float
    late: bool
    finished_at: float
    rate_macs_per_s: float
    kept: bytes
    seconds: float
    state: str


@dataclass(frozen=True)
class Stint(Values):
    """What a client of the split family is asked to do: some mini-batches of a round.

    Attributes:
        round: The round, from 0.
        first: The first mini-batch of the round that is meant, from 0.
        last: The first that is not.
        sends: Whether the server hears it: its activations come with the answer.
        returns: Whether its state comes with the answer too.
        seconds: Time from the message's arrival to the device's deadline; 0 is without end.
    """

    round: int
    first: int
    last: int
    sends: bool
    returns: bool
    seconds: float


@dataclass(frozen=True)
class Worked(Values):
    """What a client of the split family did, beside the payload.

    Attributes:
        steps: Mini-batches that it trained on: so many from the first one on.
        rate_macs_per_s: Training MAC/s, as last measured.
        seconds: From the message's arrival to the answer.
        state: "done", `LOST`, or why it did not do all.
    """

    steps: int
    rate_macs_per_s: float
    seconds: float
    state: str


LOST = "lost"
"""The state of a client that is not at its start, and of which its node knows nothing."""
