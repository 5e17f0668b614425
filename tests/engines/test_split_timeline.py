"""Virtual time of the split family, reckoned by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanfleet.engines.job import SplitJob, make_job
from leanfleet.engines.timeline import Alone, Timeline
from leanfleet.errors import ExperimentError
from leanfleet.experiment import loads

# Three devices: at their best, at half of that, and at a quarter.
TRACE = "device,seconds,rate\na,0,1.0\nb,0,0.5\nc,0,0.25\n"
DYING = "device,seconds,rate\na,0,1.0\nb,0,1.0\nb,30,0.0\nc,0,1.0\n"
TOML = """
[network]
name = "digits-cnn-small"
[fleet]
devices = 3
availability = "trace"
trace = "{trace}"
latency_seconds = 0.5
uplink_bytes_per_s = 1000.0
downlink_bytes_per_s = 4000.0
server_speed = 8.0
[training]
iterations = 4
batch_size = 10
[method]
name = "{method}"
cut = 6
"""


def job(tmp_path: Path, method: str, *overrides: str, trace: str = TRACE) -> SplitJob:
    """A job in which the whole network takes a device at its best 60 s / (4 * 10) a sample."""
    (tmp_path / "trace.csv").write_text(trace)
    made = make_job(loads(TOML.format(trace=tmp_path / "trace.csv", method=method), overrides))
    assert isinstance(made, SplitJob)
    return made


class Seconds:
    """What things take on the best device."""

    def __init__(self, job: SplitJob) -> None:
        cut, samples, rate = job.method.setting.cut, 10, job.best_rate
        assert rate == pytest.approx(3 * (cut.client_macs + cut.server_macs) * 40 / 60)
        forward = job.method.client_macs(sends=True).forward
        self.forward = forward * samples / rate
        self.step = 3 * self.forward
        self.server = 3 * cut.server_macs * samples / (8 * rate)


def test_a_client_that_needs_no_reply_trains_while_its_message_travels(tmp_path: Path) -> None:
    made = job(tmp_path, "adasplit")
    s, timeline = Seconds(made), Timeline(made, 100.0)
    assert timeline.absent([0, 1, 2], [0, 1]) == set()
    assert timeline.late({0: 2000, 1: 1000}) == set()
    timeline.end([0, 1], {})
    first, second = s.forward + 0.5 + 2.0, 2 * s.forward + 0.5 + 1.0
    arrivals = sorted((first, second))
    served = max(arrivals[0] + s.server, arrivals[1]) + s.server
    assert timeline.now == pytest.approx(100 + max(4 * s.step, served))


def test_the_server_s_queue_holds_up_replies(tmp_path: Path) -> None:
    made = job(tmp_path, "splitfed")
    s, timeline = Seconds(made), Timeline(made, 7.0)
    timeline.absent([0, 1, 2], [0, 1, 2])
    timeline.late(dict.fromkeys(range(3), 0))
    timeline.end([2, 1, 0], {0: 8000, 1: 400, 2: 4000})
    free, ends = 0.0, []
    for slower, down in ((1, 2.0), (2, 0.1), (4, 1.0)):
        free = max(free, slower * s.forward + 0.5) + s.server
        ends.append(free + 0.5 + down + slower * 2 * s.forward)
    assert timeline.now == pytest.approx(7 + max(ends))


def test_turns_and_relays_add_up(tmp_path: Path) -> None:
    made = job(tmp_path, "sl-basic")
    s, timeline = Seconds(made), Timeline(made)
    expected = 0.0
    for client, slower in ((0, 1), (1, 2), (2, 4)):
        assert timeline.absent([client], [client]) == set()
        assert timeline.late({client: 1500}) == set()
        timeline.end([client], {client: 1000})
        expected += slower * s.forward + 0.5 + 1.5 + s.server + 0.5 + 0.25 + slower * 2 * s.forward
    assert timeline.now == pytest.approx(expected)
    timeline.relay(2000)
    assert timeline.now == pytest.approx(expected + 1.0 + 2.0 + 0.5)


def test_who_is_past_the_limit_misses_the_iteration(tmp_path: Path) -> None:
    reference = job(tmp_path, "adasplit")
    s = Seconds(reference)
    limit = 2 * s.step + 0.01
    made = job(tmp_path, "adasplit", f"fleet.iteration_seconds={limit}")
    timeline = Timeline(made, 10.0)
    assert timeline.absent([0, 1, 2], [0, 1, 2]) == {2}
    assert timeline.spent(2) == pytest.approx(0.25 * limit * made.best_rate)
    room = limit - s.forward - 0.5
    assert timeline.late({0: int(1000 * room), 1: int(1000 * room)}) == {1}
    timeline.end([0], {})
    served = s.forward + 0.5 + int(1000 * room) / 1000 + s.server
    assert timeline.now == pytest.approx(10 + max(limit, served))


def test_an_iteration_with_a_limit_ends_early_when_nobody_misses_it(tmp_path: Path) -> None:
    made = job(tmp_path, "adasplit", "fleet.iteration_seconds=1000.0")
    s, timeline = Seconds(made), Timeline(made)
    timeline.absent([0, 1, 2], [])
    timeline.late({})
    timeline.end([], {})
    assert timeline.now == pytest.approx(4 * s.step)


def test_who_listens_in_vain_goes_on_alone(tmp_path: Path) -> None:
    made = job(tmp_path, "adasplit", "method.server_grad=true")
    s, timeline = Seconds(made), Timeline(made)
    timeline.absent([0, 1], [0, 1])
    timeline.late({0: 1000})  # the other had nothing to send
    timeline.end([], {})
    told = s.forward + 0.5 + 1.0 + 0.5
    assert timeline.now == pytest.approx(max(told + 2 * s.forward, 2 * s.step))
    limited = job(tmp_path, "adasplit", "method.server_grad=true", "fleet.iteration_seconds=50.0")
    timeline = Timeline(limited)
    timeline.absent([0], [0])
    assert timeline.late({0: 10**6}) == {0}
    timeline.end([], {})
    assert timeline.now == pytest.approx(50 + 2 * s.forward)


def test_alone_nobody_waits_before_the_end_of_the_round(tmp_path: Path) -> None:
    made = job(tmp_path, "adasplit")
    s, timeline = Seconds(made), Timeline(made, 5.0)
    macs = made.method.client_macs(sends=False).training * 10
    assert timeline.alone() == dict.fromkeys(range(3), Alone(4, 4 * macs))
    assert timeline.now == pytest.approx(5 + 4 * 4 * s.step)


def test_alone_the_limits_of_a_round_add_up(tmp_path: Path) -> None:
    s = Seconds(job(tmp_path, "adasplit"))
    limit = 1.9 * s.step
    made = job(tmp_path, "adasplit", f"fleet.iteration_seconds={limit}")
    timeline = Timeline(made, 5.0)
    found = timeline.alone()
    # 7.6 steps of the best device: as many, 3.8 and 1.9 of theirs.
    assert {i: alone.steps for i, alone in found.items()} == {0: 4, 1: 3, 2: 1}
    rate = made.best_rate
    assert [found[i].macs for i in (1, 2)] == pytest.approx([0.5 * 4 * limit * rate, 0.25 * 4 * limit * rate])
    assert timeline.now == pytest.approx(5 + 4 * limit)


def test_a_method_that_does_nothing_alone_takes_no_time(tmp_path: Path) -> None:
    made = job(tmp_path, "adasplit", "method.local_loss=none")
    timeline = Timeline(made, 5.0)
    assert timeline.alone() == dict.fromkeys(range(3), Alone(4, 0.0))
    assert timeline.now == 5.0


def test_a_client_that_vanishes_is_waited_for_only_without_a_limit(tmp_path: Path) -> None:
    made = job(tmp_path, "adasplit", trace=DYING)
    for play in (Timeline.alone, lambda t: (t.absent([0, 1], [1]), t.late({1: 10}), t.end([1], {}))):
        with pytest.raises(
            ExperimentError, match=r"device 1 is never done: .* set \[fleet\] iteration_seconds"
        ):
            play(Timeline(made, 29.9))
    limited = Timeline(job(tmp_path, "adasplit", "fleet.iteration_seconds=20.0", trace=DYING), 29.9)
    assert limited.absent([0, 1, 2], [1, 2]) == {1}
    assert limited.spent(1) == pytest.approx(0.1 * made.best_rate)
