"""AdaSplit's iterations through the engine against a bare PyTorch loop that does the same arithmetic.

    OMP_NUM_THREADS=1 python benchmarks/split_step.py

LeNet cut after its first layer, five clients, three of them heard in every iteration, a mask a weight; random images.
Both are timed in turns, so that a busy machine slows them down alike; the fastest of each is shown. `--profile` tells
where the time goes.
"""

from __future__ import annotations

import copy
import cProfile
import pstats
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from leanfleet.data import DataSet, Split
from leanfleet.engines.job import SplitJob, make_job
from leanfleet.engines.split import SplitCenter
from leanfleet.engines.staff import Staff
from leanfleet.experiment import loads
from leanfleet.ledger import Ledger
from leanfleet.nets.lenet import response_norm
from leanfleet.split import masks
from leanfleet.split.heads import local_head
from leanfleet.split.ntxent import ntxent

ITERATIONS, REPEATS = 10, 3
EXPERIMENT = f"""
[network]
name = "lenet"
[training]
iterations = {ITERATIONS}
[method]
name = "adasplit"
cut = 1
kappa = 0.0
"""


def images() -> DataSet:
    """Random ones: training does not get faster by them."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.arange(2000) % 10)
    return DataSet.of("random", split, split, tuple("0123456789")).share_memory_()


def bare(job: SplitJob) -> Callable[[], None]:
    """Return the same training as a loop that one would write."""
    cut = job.method.setting.cut
    clients = [nn.Sequential(copy.deepcopy(cut.client), local_head(cut.shape)) for _ in range(5)]
    adams = [torch.optim.Adam(client.parameters(), weight_decay=1e-5, fused=True) for client in clients]
    server, entry = copy.deepcopy(cut.server), response_norm()
    weights = dict(server.named_parameters())
    logits = masks.initial(weights, 5, "weight", torch.Generator())
    rows = [masks.row(logits, i) for i in range(5)]
    together = [*weights.values(), *(v.requires_grad_() for v in logits.values())]
    adam = torch.optim.Adam(together, weight_decay=1e-5, fused=True)
    mean, std = (torch.tensor(s).view(-1, 1, 1) for s in job.data.stats())

    def step(i: int, number: int) -> None:
        at = torch.arange(32) + 32 * number
        x = (job.data.train.images[job.parts[i][at % 400]] / 255 - mean) / std
        y = job.data.train.labels[job.parts[i][at % 400]]
        activation = clients[i][0](x.contiguous(memory_format=torch.channels_last))
        adams[i].zero_grad()
        torch.autograd.backward(ntxent(clients[i][1](activation), y, 0.07))
        adams[i].step()
        if i >= 3:
            return
        adam.zero_grad()
        for v in rows[i].values():
            v.grad = None
        view = masks.effective(weights, masks.soft(rows[i]), "weight")
        logits_there = functional_call(server, view, (entry(activation.detach()),))
        torch.autograd.backward(F.cross_entropy(logits_there, y))
        masks.fill_gradients_(logits, i, rows[i], 1e-3)
        adam.step()

    def loop() -> None:
        for number in range(ITERATIONS):
            for i in range(5):
                step(i, number)

    return loop


def main() -> None:
    torch.set_num_threads(1)
    data = images()
    job = make_job(loads(EXPERIMENT), data)
    assert isinstance(job, SplitJob)
    with Staff() as staff:
        pool, center, ledger = staff.for_job(job, 1), SplitCenter(job, 1), Ledger.empty(5)

        def engine() -> None:
            center.play(pool, 0, ledger, lambda share: None)

        ways = {"engine": engine, "bare loop": bare(job)}
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(REPEATS + 1):
            for name, run in ways.items():
                begin = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - begin)
        for name, seconds in best.items():
            print(f"{name:18} {1000 * seconds / ITERATIONS:8.1f} ms an iteration of 5 clients")
        print(f"engine over loop   {best['engine'] / best['bare loop']:8.3f}")
        if "--profile" in sys.argv:
            profile = cProfile.Profile()
            profile.runcall(engine)
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    main()
