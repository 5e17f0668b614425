"""The gossip family in the local engine: the loop that anybody would write, whatever workers, losses and resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_gossip import (
    STEP_MACS,
    TROUBLE,
    assert_same,
    by_hand,
    experiment,
    job_of,
    lying,
    restored,
    states,
    weight_with_outstanding,
)

from leanfleet.engines import nodes as nodes_module
from leanfleet.engines import resume, run
from leanfleet.engines.rounds import dense_bytes
from leanfleet.errors import ExperimentError, LeanfleetError
from leanfleet.experiment import load, override
from leanfleet.gossip import METHODS, broadcasts
from leanfleet.runs import Run

EXAMPLE = Path(__file__).parents[2] / "examples" / "sparse-push-digits.toml"


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    return run(experiment(*TROUBLE), root=tmp_path_factory.mktemp("troubled"), workers=1)


CASES = [
    *((f"method.name={name}",) for name in METHODS),
    ("method.name=scsp", "method.final_rounds=3", "method.density=0.1", "fleet.graph=exponential"),
    ("method.name=sparse-push", "method.density=0.2", "method.exchange_every=2"),
    ('method.compressor="random-k"', "method.running_sums=true"),
    ("method.name=sgp", "fleet.graph=ring", "method.running_sums=true", "fleet.broadcast=false"),
    ("method.name=sgp", "network.name=small_gossip:normed", "method.quasi_global=true"),
]


@pytest.mark.parametrize("overrides", CASES, ids=lambda case: " ".join(case))
def test_a_run_is_the_loop_that_anybody_would_write(tmp_path, overrides):
    if overrides == ("method.name=scsp",):
        overrides = ()
    record = run(experiment(*overrides), root=tmp_path, workers=1)
    nodes, bytes_up = by_hand(job_of(*overrides))
    for i, state in states(record).items():
        assert torch.equal(state["x"], nodes[i].x)
        assert float(state["weight"]) == nodes[i].weight
    summary = record.summary()
    assert summary["bytes_up"] == summary["bytes_down"] == bytes_up
    assert summary["macs_total"] == 4 * 9 * (
        STEP_MACS if "small_gossip" not in str(overrides) else 3 * 592 * 8
    )


def test_workers_agree_with_one_process(tmp_path, troubled):
    two = run(experiment(*TROUBLE), root=tmp_path, workers=2)
    found, other = (states(record) for record in (two, troubled))
    assert all(torch.allclose(found[i]["x"], other[i]["x"], atol=1e-4) for i in range(4))
    for key in ("bytes_up", "bytes_down", "macs_total", "seconds_virtual", "lost_share", "bytes_authors"):
        assert two.summary()[key] == pytest.approx(troubled.summary()[key], rel=1e-3)


class InterruptedByTestError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupted_run_resumes_to_the_same_result(tmp_path, troubled, at):
    """With messages on their way, a node away, and (after round 3) in the final phase."""

    def stop(progress):
        if progress.round == at and progress.share > 0.4:
            raise InterruptedByTestError

    with pytest.raises(InterruptedByTestError):
        run(experiment(*TROUBLE), root=tmp_path, workers=1, watch=stop)
    latest = Run.open(tmp_path / "small").latest()
    assert latest.round == at
    assert any(name.startswith("late/") for name in latest.tensors)
    assert_same(resume(tmp_path / "small"), troubled)


def test_mass_is_kept_whatever_links_do(troubled):
    summary = troubled.summary()
    assert summary["lost_share"] > 0
    nodes = restored(troubled, job_of(*TROUBLE))
    assert weight_with_outstanding(nodes) == pytest.approx(4, abs=1e-9)
    assert sum(node.weight for node in nodes.values()) != pytest.approx(4, abs=1e-3), "some is on its way"
    # Steps of the node that was away in exchanges 3 to 5, and of the others.
    assert [node.steps for node in nodes.values()] == [9, 9, 6, 9]


def test_without_running_sums_it_is_lost_and_the_user_is_told(tmp_path, capfd):
    record = run(
        experiment("method.running_sums=false", "fleet.loss_rate=0.3", "method.eta=0.2"),
        root=tmp_path,
        workers=1,
    )
    weights = sum(float(state["weight"]) for state in states(record).values())
    assert weights < 3.5
    (note,) = record.summary()["notes"]
    assert "lost for good" in note
    assert capfd.readouterr().err.count(note) == 1


def test_what_a_run_tells_at_its_end(tmp_path):
    record = run(experiment("experiment.eval_every=1"), root=tmp_path, workers=1)
    summary, events = record.summary(), record.events()
    assert [event["round"] for event in events] == [1, 2, 3, 4]
    assert summary["rounds"] == 3
    assert events[-1]["accuracy"] == summary["accuracy"] == pytest.approx(sum(summary["accuracies"]) / 4)
    assert events[2]["accuracy"] == summary["accuracy_before_final"]
    assert summary["worst_accuracy"] == min(summary["accuracies"])
    assert 0 <= summary["accuracy_averaged"] <= 1
    assert summary["disagreement"] < events[2]["disagreement"]
    job = job_of()
    dense, trained = dense_bytes(job) * 8 * 9, summary["bytes_up_before_final"]
    assert trained == events[2]["bytes_up"]
    assert summary["ratio"] == pytest.approx(dense / trained)
    assert summary["ratio_with_final"] == pytest.approx(dense / summary["bytes_up"])
    # The specification's 1 / (1/r + R/T).
    assert summary["ratio_with_final"] == pytest.approx(1 / (1 / summary["ratio"] + 4 / 9), rel=0.01)
    assert summary["bytes_per_message"] == trained / 72
    assert job.method.authors_bytes() == 6 * summary["values_per_message"] + 3
    assert events[2]["memory_ratio"] > 1
    assert summary["memory_ratio"] == 0
    assert summary["bytes_up"] - trained == pytest.approx(4 * 8 * dense_bytes(job), rel=0.01)
    counted = 8 * (9 * job.method.authors_bytes() + 4 * job.method.authors_bytes(final=True))
    assert summary["bytes_authors"] == counted


def test_a_broadcast_counts_once(tmp_path):
    overrides = "fleet.graph=complete", "fleet.broadcast=true", "method.name=sgp", "experiment.rounds=1"
    summary = run(experiment(*overrides), root=tmp_path, workers=1).summary()
    assert summary["bytes_down"] == 3 * summary["bytes_up"]
    assert summary["ratio"] == pytest.approx(1, abs=0.01)
    assert summary["accuracies"] == [summary["accuracy"]] * 4, "on the complete graph all have the same"


def test_norms_have_the_statistics_of_the_last_model(tmp_path):
    overrides = "network.name=small_gossip:normed", "experiment.rounds=1"
    record, job = run(experiment(*overrides), root=tmp_path, workers=1), job_of(*overrides)
    for i, node in restored(record, job).items():
        before = {name: t.clone() for name, t in node.others.items()}
        center = nodes_module.Nodes(job)
        center._nodes[i] = node
        center.refresh(i)
        assert all(torch.equal(t, node.others[name]) for name, t in before.items())
        assert int(before["2.num_batches_tracked"]) > 1


def test_what_cannot_be_used_is_left_out_and_told(tmp_path, monkeypatch):
    def lied(outbox):
        for message, to in broadcasts(outbox):
            yield (lying(message, share=7.0) if to == [0, 2] else message), to

    monkeypatch.setattr(nodes_module, "broadcasts", lied)
    sent = "method.name=sgp", "experiment.rounds=1", "experiment.eval_every=1"
    record = run(experiment(*sent), root=tmp_path, workers=1)
    rejected = record.events()[0]["rejected"]
    # Nodes 1 and 3 lie to 0 and 2, in each of three exchanges.
    assert len(rejected) == 12
    assert rejected[0] == "node 0, from node 1: a share of 7; there may be more than 0, up to 1"
    state = states(record)
    assert torch.equal(state[1]["x"].isfinite(), torch.ones_like(state[1]["x"], dtype=torch.bool))


def test_cut_bytes_are_left_out_too(tmp_path, monkeypatch):
    as_tensor = nodes_module.as_tensor
    monkeypatch.setattr(nodes_module, "as_tensor", lambda data: as_tensor(data[:-9]))
    record = run(experiment("experiment.rounds=1", "method.name=sgp"), root=tmp_path, workers=1)
    assert len(record.events()[0]["rejected"]) == 24
    assert record.events()[0]["rejected"][0].startswith("node 0, from 1: ")


def test_divergence_ends_the_run_with_a_reason(tmp_path):
    with pytest.raises(
        LeanfleetError, match=r"node \d, step \d+: training has diverged: .*lower \[method\] eta"
    ):
        run(experiment("training.lr=1e9"), root=tmp_path, workers=1)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (("fleet.graph=ring", "fleet.absences=[[1, 3, -1]]"), "graph 'ring' falls apart when 1 left"),
        (
            ("fleet.farewell=crash", "fleet.absences=[[1, 3, -1]]"),
            r"nobody would notice; set \[method\] lease",
        ),
        (("method.name=d-psgd", "fleet.absences=[[1, 3, -1]]"), "d-psgd cannot go on when a node has left"),
        (
            ("fleet.graph=ring", "method.lease=3"),
            r"\[method\] lease: on graph 'ring' node 0 never hears of node 1",
        ),
        (("fleet.graph=ring", 'method.repair="ack"'), r'repair = "ack": on graph .ring. node 0 never hears'),
        (("fleet.graph=torus(3x3)",), "torus"),
        (("method.name=choco", "fleet.graph=exponential"), "same neighbours at every step"),
        (("method.name=d-psgd", "fleet.graph=random(0.3)"), "need push-sum weights"),
        (("fleet.graph=ring", "fleet.cuts=[[1, 0, 0, 9]]"), "graph 'ring' has no link from node 1 to node 0"),
        (
            ("fleet.devices=5", "fleet.graph=dynamic-ring", 'method.repair="ack"'),
            r'repair = "ack": on graph .dynamic-ring. answers come steps later',
        ),
        (
            ("fleet.devices=5", "fleet.graph=dynamic-ring", "method.lease=3"),
            r"\[method\] lease = 3: on graph 'dynamic-ring' an answer may take \d+ exchanges",
        ),
        (
            ("network.name=small_gossip:normed", "training.batch_size=1"),
            r"\[training\] batch_size = 1: .* take 2",
        ),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(tmp_path, overrides, error):
    with pytest.raises(ExperimentError, match=error) as caught:
        run(experiment(*overrides), root=tmp_path, workers=1)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_late_messages_come_an_exchange_later_when_exchanges_are_rare(tmp_path):
    overrides = "method.exchange_every=3", "fleet.late_rate=0.9", "method.name=sgp", "experiment.rounds=4"
    record = run(experiment(*overrides), root=tmp_path, workers=1)
    nodes = restored(record, job_of(*overrides))
    assert weight_with_outstanding(nodes) == pytest.approx(4, abs=1e-9)
    assert record.summary()["bytes_down"] > 0.5 * record.summary()["bytes_up"]
    exchanges = {int(name.split("/")[1]) for name in record.latest().tensors if name.startswith("late/")}
    assert exchanges == {4}


def test_a_record_of_processes_is_not_for_one_process(tmp_path):
    def stop(progress):
        if progress.round == 1:
            raise InterruptedByTestError

    with pytest.raises(InterruptedByTestError):
        run(experiment(), root=tmp_path, workers=1, watch=stop)
    path = tmp_path / "small" / "state.json"
    content = json.loads(path.read_text())
    content["checkpoints"][0]["state"]["center"] = {"ranks": 4}
    path.write_text(json.dumps(content))
    with pytest.raises(LeanfleetError, match="made by 4 processes; go on with: torchrun --nproc-per-node 4"):
        resume(tmp_path / "small")


def test_the_example_trains(tmp_path):
    example = load(EXAMPLE, ["experiment.rounds=1", "training.iterations=2", "experiment.eval_every=1"])
    summary = run(example, root=tmp_path, workers=1).summary()
    assert summary["nodes"] == 8
    assert summary["final_rounds"] == 3
    assert 10 < summary["ratio"] < 20
    assert summary["notes"] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", [*METHODS, "random-k"])
def test_on_a_gpu_it_learns_the_same_and_resumes(tmp_path, method):
    told = ('method.compressor="random-k"',) if method == "random-k" else (f"method.name={method}",)
    lossy = TROUBLE if method in ("sgp", "sparse-push", "scsp", "random-k") else ()
    asked = experiment(*told, *(lossy[:-1] if method == "sgp" else lossy))

    def stop(progress):
        if progress.round == 2 and progress.share > 0.4:
            raise InterruptedByTestError

    here = run(asked, root=tmp_path / "cpu", workers=1)
    with pytest.raises(InterruptedByTestError):
        run(asked, root=tmp_path, workers=1, device="cuda", watch=stop)
    there = resume(tmp_path / "small", device="cuda")
    one, other = here.summary(), there.summary()
    for key in ("bytes_up", "loss", "disagreement", "weights"):
        assert one[key] == pytest.approx(other[key], rel=0.05, abs=0.01), key


# -- energy, for every family ------------------------------------------------------------------------------------

ENERGY = (
    "energy.joules_per_mac=1e-9",
    "energy.joules_per_byte_sent=2e-6",
    "energy.joules_per_byte_received=1e-6",
)


@pytest.mark.parametrize("method", ["sgp", "fedavg", "splitfed"])
def test_energy_is_reckoned_and_its_budget_ends_the_run(tmp_path, method):
    family = (
        ("method.cut=3",) if method == "splitfed" else ("fleet.per_round=2",) if method == "fedavg" else ()
    )
    asked = experiment(f"method.name={method}", *family, *ENERGY, "experiment.eval_every=1")
    free = run(asked, root=tmp_path, workers=1)
    totals = [(e["macs_total"], e["bytes_up"], e["bytes_down"], e["energy_joules"]) for e in free.events()]
    for macs, up, down, joules in totals:
        assert joules == pytest.approx(1e-9 * macs + 2e-6 * up + 1e-6 * down)
    parts = free.summary()["energy"]
    assert sum(parts.values()) == pytest.approx(free.summary()["energy_joules"])
    assert free.summary()["notes"][-1].startswith("energy is assumed, not measured: 1e-09 J a MAC")

    budget = (totals[0][3] + totals[1][3]) / 2
    ended = run(override(asked, [f"budget.joules={budget}"]), root=tmp_path, workers=1).summary()
    assert (ended["ended_by"], ended["rounds"]) == ("joules", 2)
