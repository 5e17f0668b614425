"""Short trainings: how much a network gains in a few steps at given dropout rates."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from leanfleet.data import Batches, DataSet, eval_batches
from leanfleet.federated import Optimiser
from leanfleet.federated.step import Local, Step
from leanfleet.nets import NETWORKS, build
from leanfleet.randomness import key, seed_global, torch_generator
from leanfleet.subnet import Kept, SubnetPlan
from leanfleet.wire import Message, decode, encode
from leanfleet.workers import Handler, Tick, Workers

Values = npt.NDArray[np.float64]
Seeds = npt.NDArray[np.int64]

# DenseNet-BC-19 measures 1,000 images in 0.63 s in batches of 250, in 0.77 s as one of 1,000 (one x86 core): smaller
# activations stay in the cache. For the other reference networks it makes no difference.
_MEASURED_AT_ONCE = 250
# A message holds no infinity.
_LONG = 1e12


@dataclass(frozen=True)
class Task:
    """What every short training has in common.

    Attributes:
        network: What `leanfleet.nets.build` takes.
        keep: Layers whose channels are never dropped; the reference network's own choice if None.
        data: Images to train on, and to measure on as its test split.
        optimiser: Local training of the fleet.
        batch_size: Samples of a mini-batch.
        steps: Mini-batches of a short training.
        seed: Of the initialisation, and of everything random.
    """

    network: str
    keep: tuple[str, ...] | None
    data: DataSet
    optimiser: Optimiser
    batch_size: int = 64
    steps: int = 64
    seed: int = 0

    def plan(self) -> tuple[SubnetPlan, dict[str, Tensor]]:
        """Return the network's plan and its parameters at the start."""
        data = self.data
        net = build(self.network, classes=len(data.classes), shape=data.shape, seed=self.seed)
        usual = NETWORKS[self.network].keep if self.network in NETWORKS else ()
        plan = SubnetPlan.trace(net, torch.zeros(2, *data.shape), usual if self.keep is None else self.keep)
        return plan, {name: p.detach().clone() for name, p in net.named_parameters()}


class Bench:
    """Trains and measures in this process."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.plan, self.params = task.plan()
        data = task.data
        self._held_out = eval_batches(
            data.test, batch_size=_MEASURED_AT_ONCE, mean=data.mean, std=data.std, seed=task.seed
        )
        self._before = 0.0, 0.0

    def begin(self, params: Mapping[str, Tensor]) -> None:
        """Set what every short training starts from."""
        self.params = dict(params)
        self._before = self.measure(self.params)

    def gain(self, rates: Sequence[float], seed: int) -> tuple[float, float]:
        """Return how much a short training gains, in accuracy and in loss (positive is better).

        Args:
            rates: [groups] dropout rates.
            seed: Decides mini-batches and masks. Equal seeds give nested masks: a lower rate keeps a superset.
        """
        trained = self.train(self.params, rates, self.task.steps, seed)
        accuracy, loss = self.measure(trained)
        return accuracy - self._before[0], self._before[1] - loss

    def train(
        self, params: Mapping[str, Tensor], rates: Sequence[float], steps: int, seed: int
    ) -> dict[str, Tensor]:
        """Return the parameters after some steps at the same rates, with new masks for every step."""
        with torch.random.fork_rng(devices=[]):
            # From the global stream draw networks with dropout of their own.
            seed_global(key(self.task.seed, seed, "search torch"), torch.device("cpu"))
            return self._train(params, rates, steps, seed)

    def _train(
        self, params: Mapping[str, Tensor], rates: Sequence[float], steps: int, seed: int
    ) -> dict[str, Tensor]:
        task = self.task
        # As DISTREAL trains: kept channels are scaled.
        local = Local(Step(self.plan, task.optimiser, task.optimiser.lr, scale=True), params)
        batches = Batches(
            split=task.data.train,
            indices=torch.arange(len(task.data.train)),
            batch_size=task.batch_size,
            # A small rest of an epoch joins its last mini-batch, so one may have fewer of them.
            epochs=-(-steps // max(1, len(task.data.train) // task.batch_size)),
            mean=task.data.mean,
            std=task.data.std,
            generator=torch_generator(task.seed, seed, "search batches"),
        )
        for number, batch in zip(range(steps), batches, strict=False):
            masks = torch_generator(task.seed, seed, number, "search masks")
            local.descend(nested(self.plan, rates, masks), batch)
        return local.params

    def measure(self, params: Mapping[str, Tensor], kept: Kept | None = None) -> tuple[float, float]:
        """Return accuracy and mean loss of the network on the images held out, of all of it if `kept` is None.

        The loss is at most that of guessing (our decision): a network that has diverged knows nothing, and one such
        training must not outweigh all others in a mean.
        """
        hits = count = 0
        loss = 0.0
        leaves, kept = (params, self.plan.full) if kept is None else (self.plan.pack(params, kept), kept)
        with torch.no_grad():
            for x, y in self._held_out:
                logits = self.plan.run(leaves, kept, x, training=False)
                hits += int((logits.argmax(1) == y).sum())
                loss += float(F.cross_entropy(logits, y, reduction="sum"))
                count += len(y)
        guessing = math.log(len(self.task.data.classes))
        return hits / count, min(loss / count, guessing) if math.isfinite(loss) else guessing


def nested(plan: SubnetPlan, rates: Sequence[float], generator: torch.Generator) -> Kept:
    """Draw kept sets so that, from the same generator state, a lower rate keeps a superset in every group.

    Common random numbers: the difference of two vectors is then not hidden by the luck of their masks (our decision).
    """
    sets = {}
    for group, rate in zip(plan.groups, rates, strict=True):
        target, low, high = group.neighbours(rate)
        luck = float(torch.rand((), generator=generator, dtype=torch.float64))
        count = high if high > low and luck < (target - low) / (high - low) else low
        picks = []
        for members in group.members:
            order = torch.randperm(len(members), generator=generator)
            picks.append(members[order[: count // group.cells]])
        sets[group.name] = torch.cat(picks).sort().values
    return plan.keep(sets)


class Pool:
    """Short trainings over worker processes.

    Attributes:
        workers: How many there are.
        seconds_training: Seconds that the busiest worker of each request trained and measured, summed up.
    """

    def __init__(self, task: Task, workers: int) -> None:
        task.data.share_memory_()
        self._workers = Workers(workers, _start, (task,))
        self.workers, self.seconds_training = workers, 0.0

    def begin(self, params: Mapping[str, Tensor]) -> None:
        """Give every worker what to start from."""
        told = encode(Message(dict(params), {"task": "begin"}))
        self._workers.ask([told] * self._workers.count)

    def gains(
        self,
        rates: Values,
        seeds: Seeds,
        costs: Values,
        tick: Tick,
        seconds: float = math.inf,
        expected: float = 0.0,
    ) -> Values:
        """Return the gains of short trainings, float64 [n, 2]: accuracy, loss; NaN where time ran out.

        Args:
            rates: float64 [n, groups].
            seeds: int64 [n].
            costs: float64 [n] what each costs, in any unit, to share the work evenly.
            tick: Called after each.
            seconds: No short training begins that would probably take longer than until then.
            expected: What one takes a worker, as long as it has done none.
        """
        count = self._workers.count
        # Sorted by cost and dealt out in turn: every worker gets as much of each sort.
        shares = [np.argsort(-costs, kind="stable")[worker::count] for worker in range(count)]
        requests = [
            encode(
                Message(
                    {"rates": torch.from_numpy(rates[share]), "seeds": torch.from_numpy(seeds[share])},
                    {"task": "trials", "seconds": min(seconds, _LONG), "expected": expected},
                )
            )
            for share in shares
        ]
        found = np.full((len(rates), 2), np.nan)
        answers = [decode(answer) for answer in self._workers.ask(requests, tick)]
        for share, answer in zip(shares, answers, strict=True):
            gains = answer.tensors["gains"].numpy()
            found[share[: len(gains)]] = gains
        self.seconds_training += max(float(answer.scalars["seconds"]) for answer in answers)
        return found

    def close(self) -> None:
        """End the workers."""
        self._workers.close()


def measured(gains: Values) -> npt.NDArray[np.bool_]:
    """Return which gains [..., 2] are there; the others had no time."""
    there: npt.NDArray[np.bool_] = np.logical_not(np.isnan(gains).any(axis=-1))
    return there


def _start(task: Task) -> Handler:
    bench, slowest = Bench(task), 0.0

    def handle(request: bytes, tick: Tick) -> bytes:
        nonlocal slowest
        asked = decode(request)
        if asked.scalars["task"] == "begin":
            bench.begin(asked.tensors)
            return encode(Message())
        begun = time.perf_counter()
        last, before, gains = begun, slowest or float(asked.scalars["expected"]), []
        slowest = 0.0
        for rates, seed in zip(asked.tensors["rates"].tolist(), asked.tensors["seeds"].tolist(), strict=True):
            if last - begun + max(before, slowest) > float(asked.scalars["seconds"]):
                break
            gains.append(bench.gain(rates, seed))
            tick()
            now = time.perf_counter()
            slowest, last = max(slowest, now - last), now
        found = torch.tensor(gains, dtype=torch.float64).view(-1, 2)
        return encode(Message({"gains": found}, {"seconds": last - begun}))

    return handle
