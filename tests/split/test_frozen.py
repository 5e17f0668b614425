"""A half whose parameters the user has frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_split import BATCH, CLASSES, CLIENTS, batch, copied, net, same

from leanfleet.split import METHODS, Setting, cut


@pytest.mark.parametrize(
    ("name", "options"), [("sl-basic", {}), ("adasplit", {"head": False, "server_grad": True})]
)
def test_a_half_that_is_frozen_is_left_as_it_is(name: str, options: dict[str, Any]) -> None:
    whole = net().requires_grad_(True)
    whole[0].requires_grad_(False)
    kind = METHODS[name]
    found = cut(whole, 1, torch.zeros(2, 2, 8, 8))
    m = kind(Setting(found, CLIENTS, CLASSES, 10, 5, 1e-2, 1e-5, BATCH, 0), kind.Options(**options))
    client, server = m.client(), m.server()
    before = copied(client.own())
    x, y = batch()
    up, _ = client.step(x, y, sends=True)
    assert up is not None
    client.reply(server.step(0, up, y).gradient)
    assert same(before, copied(client.own()))
