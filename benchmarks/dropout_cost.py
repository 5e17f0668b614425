"""What random filters cost a network that begins to learn: one machine, no fleet.

    LEANFLEET_DATA=FOLDER python benchmarks/dropout_cost.py

DenseNet-BC-19 on CIFAR-10, new filters at every mini-batch as in DISTREAL. The whole network and
the first share are trained a second time in plain PyTorch, with masks on the activations instead of narrow
convolutions: an oracle for the loss that shows.
Prints a Markdown table and writes it to docs/results/dropout-cost/, with all numbers.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor, nn

from leanfleet.data import Batches, DataSet, eval_batches, load
from leanfleet.engines.describe import machine
from leanfleet.federated import Optimiser
from leanfleet.federated.step import Batch, Local, Step
from leanfleet.nets import build
from leanfleet.storage import write_json, write_text
from leanfleet.subnet import SubnetPlan

OUTPUT = Path(__file__).parent.parent / "docs" / "results" / "dropout-cost"
NETWORK = "densenet-bc-19"
OPTIMISER = Optimiser(0.1, weight_decay=1e-3)
WHERE = {"all": "", "bottlenecks": "conv1", "growth": "conv2"}
"""What the names of the layers that drop filters contain."""
TEXT = """# What random filters cost a network that begins to learn

DenseNet-BC-19 on CIFAR-10, one machine, no fleet: mini-batches of 32, SGD with learning rate 0.1, new filters at every
mini-batch. Accuracy of the whole network on the test images [%], one seed; "narrow in use": in the end, of
sub-networks at the rates that were trained. "all" drops in all layers alike; a dense layer has a bottleneck of 48
filters and a growth of 12. "narrow" training is leanfleet's; "masked" the same in plain PyTorch: the whole network,
with masks on what every convolution reads.

```
python benchmarks/dropout_cost.py
```

{there}
"""


@dataclass(frozen=True)
class Measured:
    """What one training came to.

    Attributes:
        how: "narrow" (leanfleet) or "masked" (plain PyTorch).
        where: Which layers drop filters, a key of `WHERE`.
        rate: Of these layers.
        macs: Share of the whole network's.
        accuracy: Of the whole network on the test images, after so many steps.
        own: In the end, of sub-networks at the same rates, new ones for every batch of test images.
    """

    how: str
    where: str
    rate: float
    macs: float
    accuracy: dict[int, float]
    own: float


class Masked(nn.Module):
    """The same network in plain PyTorch: whole, with masks on what the convolutions read.

    Args:
        net: A DenseNet-BC.
        rate: Of all layers.
    """

    def __init__(self, net: nn.Module, rate: float) -> None:
        super().__init__()
        self.net, self.rate = copy.deepcopy(net).train(), rate
        self._generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, 32, 32] to logits [N, 10], with new masks."""
        net = self.net
        x = net.get_submodule("conv0")(x)
        mask = self._mask(x)
        for block in (1, 2, 3):
            for layer in net.get_submodule(f"block{block}").children():
                new = layer.get_submodule("conv1")(torch.relu(layer.get_submodule("norm1")(x)) * mask)
                within = self._mask(new)
                new = layer.get_submodule("conv2")(torch.relu(layer.get_submodule("norm2")(new)) * within)
                x, mask = torch.cat([x, new], 1), torch.cat([mask, self._mask(new)], 1)
            if block < 3:
                norm, relu, conv, pool = net.get_submodule(f"transition{block}").children()
                x = pool(conv(relu(norm(x)) * mask))
                mask = self._mask(x)
        x = torch.relu(net.get_submodule("norm")(x)) * mask
        logits: Tensor = net.get_submodule("classifier")(x.mean((2, 3)))
        return logits

    def _mask(self, x: Tensor) -> Tensor:
        channels, rng = x.shape[1], self._generator
        wanted = (1 - self.rate) * channels
        count = int(wanted) + int(float(torch.rand((), generator=rng)) < wanted % 1)
        mask = torch.zeros(1, channels, 1, 1)
        mask[:, torch.randperm(channels, generator=rng)[:count]] = channels / count
        return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.75, 0.5], help="of the whole network's MACs"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 800, 1600])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load("cifar10")
    net = build(NETWORK, classes=len(data.classes), shape=data.shape, seed=0)
    plan = SubnetPlan.trace(net, torch.zeros(2, *data.shape))
    first = given.shares[0]
    cases = [("narrow", "all", share) for share in (1.0, *given.shares)]
    cases += [("narrow", "bottlenecks", first), ("narrow", "growth", first)]
    cases += [("masked", "all", share) for share in (1.0, first)]
    found = []
    for how, where, share in cases:
        rate = rate_for(plan, where, share)
        rates = vector(plan, where, rate)
        accuracy, params = dict[int, float](), dict[str, Tensor]()
        training = narrow(net, plan, data, rates) if how == "narrow" else masked(net, data, rate)
        for step, params in zip(range(1, max(given.steps) + 1), training, strict=False):
            if step in given.steps:
                accuracy[step] = measure(plan, params, data)
                print(
                    f"{how}, {where}, rate {rate:.3f}, {step} steps: {100 * accuracy[step]:.1f} %", flush=True
                )
        found.append(Measured(how, where, rate, share, accuracy, measure(plan, params, data, rates)))
    given.output.mkdir(parents=True, exist_ok=True)
    known = machine()
    there = {name: known[name] for name in ("leanfleet", "python", "cpu")} | {"torch": torch.__version__}
    told = {**there, "batch_size": 32, "optimiser": asdict(OPTIMISER), "measured": [asdict(m) for m in found]}
    write_json(given.output / "numbers.json", told)
    line = (
        ", ".join(f"{name} {value}" for name, value in there.items())
        + "; one thread; all numbers: [numbers.json](numbers.json)."
    )
    write_text(given.output / "README.md", page(found, given.steps, line))


def vector(plan: SubnetPlan, where: str, rate: float) -> list[float]:
    """Return the rates of all layers, of which only some drop filters."""
    return [rate if WHERE[where] in group.name else 0.0 for group in plan.groups]


def rate_for(plan: SubnetPlan, where: str, share: float) -> float:
    """Return the rate at which so much of the whole network's MACs is left."""
    full = plan.macs(plan.uniform(0.0))
    return float(brentq(lambda rate: plan.macs(vector(plan, where, rate)) / full - share, 0.0, 0.5))


def narrow(
    net: nn.Module, plan: SubnetPlan, data: DataSet, rates: Sequence[float]
) -> Iterator[dict[str, Tensor]]:
    """Train as DISTREAL does; give the parameters after every mini-batch."""
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    local = Local(Step(plan, OPTIMISER, OPTIMISER.lr, scale=True), start)
    masks = torch.Generator().manual_seed(0)
    for batch in batches(data):
        local.descend(plan.draw(rates, masks), batch)
        yield local.params


def masked(net: nn.Module, data: DataSet, rate: float) -> Iterator[dict[str, Tensor]]:
    """Train with masks in plain PyTorch; give the parameters after every mini-batch."""
    own = Masked(net, rate)
    sgd = torch.optim.SGD(own.net.parameters(), OPTIMISER.lr, weight_decay=OPTIMISER.weight_decay)
    for x, y in batches(data):
        sgd.zero_grad()
        torch.autograd.backward(F.cross_entropy(own(x), y))
        sgd.step()
        yield {name: p.detach() for name, p in own.net.named_parameters()}


def batches(data: DataSet) -> Iterator[Batch]:
    """Give the same mini-batches of 32 to everyone, ten epochs of them."""
    everyone, rng = torch.arange(len(data.train.labels)), torch.Generator().manual_seed(0)
    yield from Batches(
        data.train, everyone, batch_size=32, epochs=10, mean=data.mean, std=data.std, generator=rng
    )


def measure(
    plan: SubnetPlan, params: dict[str, Tensor], data: DataSet, rates: Sequence[float] | None = None
) -> float:
    """Return the accuracy on the test images, with each batch's own statistics: the whole network's without rates."""
    hits = count = 0
    masks = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for x, y in eval_batches(data.test, mean=data.mean, std=data.std, seed=0):
            kept = plan.full if rates is None else plan.draw(rates, masks)
            logits = plan.run(plan.pack(params, kept), kept, x, scale=True, training=False)
            hits += int((logits.argmax(1) == y).sum())
            count += len(y)
    return hits / count


def page(found: Sequence[Measured], steps: Sequence[int], there: str) -> str:
    """Return the page."""
    head = ["layers that drop", "rate", "MACs", "trained", *(f"{step:,} mini-batches" for step in steps)]
    rows = [
        [m.where, f"{m.rate:.3f}", f"{m.macs:.2f}", m.how]
        + [f"{100 * m.accuracy[step]:.1f}" for step in steps]
        + [f"{100 * m.own:.1f}"]
        for m in found
    ]
    rule = ["---", "---:", "---:", "---", *("---:" for _ in steps), "---:"]
    table = [f"| {' | '.join(cells)} |" for cells in ([*head, "narrow in use"], rule, *rows)]
    return "\n".join([TEXT.format(there=there), *table, ""])


if __name__ == "__main__":
    main()
