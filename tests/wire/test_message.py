from __future__ import annotations

import dataclasses

import pytest
import torch

from leanfleet.wire import Message


@pytest.mark.parametrize(
    "other",
    [
        Message({"w": torch.tensor([1.0, 3.0])}, {"n": 1}),
        Message({"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}, {"n": 1}),
        Message({"w": torch.tensor([[1.0, 2.0]])}, {"n": 1}),
        Message({"v": torch.tensor([1.0, 2.0])}, {"n": 1}),
        Message({"w": torch.tensor([1.0, 2.0])}, {"n": True}),
        Message({"w": torch.tensor([1.0, 2.0])}, {"n": 1.0}),
        Message({"w": torch.tensor([1.0, 2.0])}),
    ],
)
def test_equality_takes_names_types_shapes_and_values(other: Message) -> None:
    message = Message({"w": torch.tensor([1.0, 2.0])}, {"n": 1})
    assert message == Message({"w": torch.tensor([1.0, 2.0])}, {"n": 1})
    assert message != other
    assert message != "message"


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Message().tensors = {}  # type: ignore[misc]
