"""Virtual time among peers, by hand: who waits for whom, one uplink a node, what comes late."""

from __future__ import annotations

import pytest
import torch
from small_gossip import STEP_MACS, job_of
from torch import Tensor

from leanfleet.engines.links import Links
from leanfleet.engines.post import Post

LATENCY, RATE = 0.5, 100.0
LINK = f"fleet.latency_seconds={LATENCY}", f"fleet.uplink_bytes_per_s={RATE}"


def post_of(*overrides: str) -> Post:
    job = job_of(*LINK, *overrides)
    return Post(job, Links(job.fleet, seed=0))


def bytes_(number: int) -> Tensor:
    return torch.zeros(number, dtype=torch.uint8)


def test_a_step_takes_its_share_of_the_round() -> None:
    post = post_of("fleet.round_seconds=6.0")
    post.compute([0, 2], STEP_MACS)
    # Three mini-batches a round.
    assert post.times == pytest.approx([2, 0, 2, 0])
    assert post.now == pytest.approx(2)


def test_one_waits_for_those_who_send_to_it_and_for_nobody_else() -> None:
    post = post_of()
    post.times = [1.0, 5.0, 0.0, 7.0]
    assert post.send({"0/0": bytes_(100), "1/0": bytes_(50)}, {"0/0": [1], "1/0": [2]}) == [100, 50]
    # To 1 the message of 0 comes at 2.5, when it is still at work; to 2 that of 1 at 6.
    assert post.times == pytest.approx([1, 5, 6, 7])


def test_messages_go_out_one_after_the_other() -> None:
    post = post_of()
    assert post.send({"0/0": bytes_(100), "0/1": bytes_(200)}, {"0/0": [1], "0/1": [2, 3]}) == [100, 200, 200]
    assert post.times == pytest.approx([0, 1.5, 3.5, 5.5])
    # The next message waits for the uplink, not for the node.
    post.send({"0/0": bytes_(100)}, {"0/0": [1]})
    assert post.times[1] == pytest.approx(6.5)


def test_a_broadcast_goes_out_once() -> None:
    post = post_of("fleet.broadcast=true")
    assert post.send({"0/0": bytes_(200)}, {"0/0": [1, 2]}) == [200]
    assert post.times == pytest.approx([0, 2.5, 2.5, 0])


def test_what_is_lost_is_waited_for() -> None:
    post = post_of("fleet.cuts=[[0, 1, 0, 0]]")
    letters = {"0/0": bytes_(100)}, {"0/0": [1, 2]}
    post.send(*letters)
    arrived, lost = post.deliver(0, *letters)
    assert [letter.receiver for letter in arrived] == [2]
    assert lost == 1
    assert post.times[1] == pytest.approx(1.5)


def test_late_messages_survive_a_checkpoint_in_their_order() -> None:
    post = post_of("fleet.double_rate=0.999", "fleet.late_rate=0.999")
    for exchange in (8, 9):
        message = {f"{i}/0": bytes_(exchange) for i in (2, 0)}
        arrived, lost = post.deliver(exchange, message, {"2/0": [1], "0/0": [1]})
        assert lost == 0
    assert [letter.name for letter in arrived] == ["2/0/8", "0/0/8"]
    again = post_of()
    again.restore(dict(reversed(post.tensors().items())), post.state())
    nothing: dict[str, Tensor] = {}
    for one in (post, again):
        names = [[letter.name for letter in one.deliver(k, nothing, {})[0]] for k in (10, 11, 12)]
        assert names == [["2/0/8", "0/0/8", "2/0/9", "0/0/9"], ["2/0/9", "0/0/9"], []]


def test_what_is_due_comes_also_when_exchanges_are_left_out() -> None:
    post = post_of("fleet.late_rate=0.999")
    post.deliver(3, {"0/0": bytes_(1)}, {"0/0": [1]})
    assert [letter.receiver for letter in post.deliver(20, {}, {})[0]] == [1]
