"""Time of a narrow training step as a share of a plain module's, interleaved, one thread.

    python benchmarks/step_time.py --network densenet-bc-40

Prints a Markdown table: step time and MACs, both relative to the whole network in plain PyTorch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

# As in a worker: read when the first convolution runs.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")

import torch
import torch.nn.functional as F

from leanfleet.federated import Optimiser
from leanfleet.federated.step import Local, Step
from leanfleet.fleet import Constant, Pacer, VirtualClock
from leanfleet.nets import NETWORKS, build
from leanfleet.subnet import SubnetPlan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", default="densenet-bc-40", choices=sorted(NETWORKS))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    reference = NETWORKS[given.network]
    net = build(given.network)
    plan = SubnetPlan.trace(net, torch.zeros(1, *reference.shape), reference.keep)
    x = torch.randn(given.batch_size, *reference.shape).contiguous(memory_format=torch.channels_last)
    y = torch.randint(reference.classes, (given.batch_size,))
    optimiser = Optimiser(0.01, momentum=0.9, weight_decay=1e-3)
    step = Step(plan, optimiser, 0.01, scale=True)
    local = Local(step, {n: p.detach() for n, p in net.named_parameters()})
    pacer = Pacer(VirtualClock(Constant(1.0)), round_start=0, round_seconds=1, samples=1, deadline=False)
    masks = torch.Generator().manual_seed(0)
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-3)

    def plain() -> None:
        sgd.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(x), y))
        sgd.step()

    def narrow(rate: float) -> Callable[[], object]:
        return lambda: local.train(plan.draw(plan.uniform(rate), masks), (x, y), pacer)

    rates = (0.0, 0.1, 0.25, 0.5)
    steps: dict[str, Callable[[], object]] = {"plain module": plain}
    steps |= {f"rate {rate:g}": narrow(rate) for rate in rates}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(given.repeats + 2):
        for name, take in steps.items():
            begin = time.perf_counter()
            take()
            # The first rounds compile kernels for every shape.
            if repeat >= 2:
                times[name].append(time.perf_counter() - begin)
    whole = statistics.median(times["plain module"])
    shares = [1.0, *(plan.macs(plan.uniform(rate)) / plan.macs(plan.uniform(0.0)) for rate in rates)]
    print(f"{given.network}, batch {given.batch_size}, torch {torch.__version__}, one thread\n")
    print("| step | time | MACs |\n|---|---:|---:|")
    for name, share in zip(steps, shares, strict=True):
        print(f"| {name} | {statistics.median(times[name]) / whole:.2f} | {share:.2f} |")


if __name__ == "__main__":
    main()
