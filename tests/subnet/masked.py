"""The oracle: the user's own network, full width, with what its layers read multiplied by C/n * mask.

Nothing here uses the package's sliced path: which layer reads which channels is written down by hand for every
network (`Case.reads`), and forward hooks do the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from leanfleet.subnet import Kept, SubnetPlan

Factors = Callable[[str], Tensor]
"""Group name to float64 [channels]: C/n where a channel is kept, else 0."""


@dataclass(frozen=True)
class Case:
    """A network and what its author knows about it.

    Attributes:
        build: Makes it.
        shape: Of one input.
        groups: Expected channel groups and their sizes, in order.
        reads: What every layer that mixes channels reads: layer name to [width] factors. Layers left out read what
            is never dropped.
        norms: What every norm over several channels reads, likewise.
        keep: Exempted layers.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: Mapping[str, int]
    reads: Callable[[Factors], dict[str, Tensor]]
    norms: Callable[[Factors], dict[str, Tensor]] = field(default=lambda f: {})
    keep: tuple[str, ...] = ()


def trace(case: Case, seed: int = 0) -> tuple[nn.Module, SubnetPlan]:
    """Return the network in float64 with random (also affine) parameters, and its plan."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = case.build().double()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.ndim < 2:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return net, SubnetPlan.trace(net, torch.zeros(1, *case.shape, dtype=torch.float64), case.keep)


def leaves_of(plan: SubnetPlan, net: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """Return packed leaves that take gradients."""
    packed = plan.pack(dict(net.named_parameters()), kept)
    return {name: leaf.requires_grad_() for name, leaf in packed.items()}


def factors_of(plan: SubnetPlan, kept: Kept, *, scale: bool = True) -> Factors:
    channels = {group.name: group.channels for group in plan.groups}

    def factors(name: str) -> Tensor:
        ids = kept[name]
        full = torch.zeros(channels[name], dtype=torch.float64)
        full[ids] = channels[name] / len(ids) if scale else 1.0
        return full

    return factors


@contextlib.contextmanager
def masking(net: nn.Module, case: Case, factors: Factors) -> Iterator[None]:
    """Let the network's layers read masked values, and its norms see kept channels only."""
    with contextlib.ExitStack() as stack:
        for name, vector in case.reads(factors).items():
            handle = net.get_submodule(name).register_forward_pre_hook(_multiply(vector))
            stack.callback(handle.remove)
        for name, vector in case.norms(factors).items():
            handle = net.get_submodule(name).register_forward_hook(_norm_of_kept(vector > 0))
            stack.callback(handle.remove)
        yield


def _multiply(vector: Tensor) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (value,) = inputs
        dim = value.ndim - 1 if isinstance(module, nn.Linear) else 1
        return value * vector.to(value).view([-1 if d == dim else 1 for d in range(value.ndim)])

    return hook


def _norm_of_kept(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
        (value,) = inputs
        if isinstance(module, nn.LayerNorm):
            return _normed(value, mask, module, value.ndim - 1)
        assert isinstance(module, nn.GroupNorm)
        pieces = zip(value.chunk(module.num_groups, 1), mask.chunk(module.num_groups), strict=True)
        joined = torch.cat([_standard(piece, own, (1, 2, 3), 1, module.eps) for piece, own in pieces], 1)
        return joined * module.weight.view(1, -1, 1, 1) + module.bias.view(1, -1, 1, 1)

    return hook


def _normed(value: Tensor, mask: Tensor, module: nn.LayerNorm, dim: int) -> Tensor:
    return _standard(value, mask, (dim,), dim, module.eps) * module.weight + module.bias


def _standard(value: Tensor, mask: Tensor, dims: tuple[int, ...], dim: int, eps: float) -> Tensor:
    kept = value.index_select(dim, mask.nonzero().squeeze(1))
    mean = kept.mean(dims, keepdim=True)
    return (value - mean) / (((kept - mean) ** 2).mean(dims, keepdim=True) + eps).sqrt()


def close(actual: Tensor, expected: Tensor) -> None:
    """Assert agreement within the specification's tolerance for float64."""
    largest = expected.detach().abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10 * max(1.0, largest))


def check_sliced_is_masked(
    case: Case, net: nn.Module, plan: SubnetPlan, kept: Kept, *, scale: bool = True, batch: int = 4
) -> None:
    """Assert that the narrow run and the masked network agree: outputs, all gradients, zero for what is dropped."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x = torch.randn(batch, *case.shape, dtype=torch.float64)
    net.zero_grad()
    with masking(net, case, factors_of(plan, kept, scale=scale)):
        expected = net(x)
    probe = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    (expected * probe).sum().backward()

    leaves = leaves_of(plan, net, kept)
    out = plan.run(leaves, kept, x, scale=scale)
    (out * probe).sum().backward()
    close(out, expected)
    for name, parameter in net.named_parameters():
        narrow = leaves[name].grad
        gradient = torch.zeros_like(parameter)
        if narrow is not None:
            plan.unpack_({name: gradient}, {name: narrow}, kept)
        close(gradient, torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
