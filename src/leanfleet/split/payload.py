"""What crosses the cut: activations and labels up, gradients down, as bytes."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from leanfleet.errors import WireError
from leanfleet.wire import Message, Payload, Values, decode, encode, pack, unpack
from leanfleet.wire.packing import PACKED
from leanfleet.wire.payload import gather, sparse

_FLOAT_BYTES: Final = 4


class Sent(NamedTuple):
    """A message with activations.

    Attributes:
        data: Its bytes.
        activation: What the server will see of the activations.
        authors_bytes: What AdaSplit's public code counts for it: four bytes for every value that is not zero, and
            nothing for positions, labels and header.
    """

    data: bytes
    activation: Payload
    authors_bytes: int


class Received(NamedTuple):
    """A message with activations, decoded and checked.

    Attributes:
        activation: [N, ...], as the server sees it.
        labels: int64 [N].
        payload: How it travelled; its positions are where a gradient is wanted.
    """

    activation: Tensor
    labels: Tensor
    payload: Payload


def send_activation(activation: Tensor, labels: Tensor, classes: int, values: Values) -> Sent:
    """Return activations [N, ...] and labels int64 [N] as a message.

    Raises:
        WireError: A value is not finite.
    """
    payload = sparse(activation.cpu().contiguous()).rounded(values, "channel")
    tensors = {"activation": pack({"": payload}), "labels": labels.to("cpu", _label_dtype(classes))}
    data = encode(Message(tensors))
    return Sent(data, payload, _FLOAT_BYTES * len(payload.values))


def receive_activation(data: bytes, shape: tuple[int, ...], classes: int, samples: int) -> Received:
    """Return what a message of `send_activation` holds.

    Args:
        data: The bytes as received, from anywhere.
        shape: Of the activations of one sample.
        classes: Number of classes.
        samples: How many there must be.

    Raises:
        WireError: It holds anything else.
    """
    message = decode(data, {"activation": PACKED, "labels": (_label_dtype(classes), (-1,))}, {})
    labels = message.tensors["labels"].long()
    if len(labels) != samples:
        raise WireError(f"{len(labels)} samples where there must be {samples}")
    if int(labels.max()) >= classes or int(labels.min()) < 0:
        raise WireError(f"a label is none of the {classes} classes")
    whole = {"": (torch.float32, (samples, *shape))}
    payload = unpack(message.tensors["activation"], whole)[""]
    return Received(payload.dense(), labels, payload)


def send_gradient(gradient: Tensor, up: Payload, rectified: bool, values: Values) -> bytes:
    """Return the gradient at the cut as a message.

    Args:
        gradient: [N, ...].
        up: How the activations came.
        rectified: Whether the gradient matters only where an activation is not 0, see `Cut.rectified`: both sides
            know these positions, which need not travel again.
        values: How values travel.

    Raises:
        WireError: A value is not finite.
    """
    payload = gather(gradient.cpu().contiguous(), _places(up, rectified)).rounded(values)
    return encode(Message({"gradient": pack({"": payload.values_only()})}))


def receive_gradient(data: bytes, up: Payload, rectified: bool) -> Tensor:
    """Return the gradient of a message of `send_gradient`, [N, ...].

    Raises:
        WireError: It holds anything else.
    """
    message = decode(data, {"gradient": PACKED}, {})
    places = _places(up, rectified)
    count = up.numel if places is None else len(places)
    values = unpack(message.tensors["gradient"], {"": (torch.float32, (count,))})[""]
    return values.at(places, up.shape).dense()


def _places(up: Payload, rectified: bool) -> Tensor | None:
    return up.positions if rectified else None


def _label_dtype(classes: int) -> torch.dtype:
    return torch.uint8 if classes <= 256 else torch.int16 if classes <= 2**15 else torch.int32
