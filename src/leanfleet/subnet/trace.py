"""torch.fx finds a network's operations; one run of the whole network finds their shapes."""

from __future__ import annotations

import copy
import difflib
import traceback
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from leanfleet.errors import TraceError, did_you_mean
from leanfleet.subnet.builder import Shapes

_SAMPLES = 2
"""Samples in the first run for shapes: more than one, for batch norm."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Ours has a backward pass of its own, behind a branch; torch's is a leaf anyway.
        return isinstance(m, nn.LocalResponseNorm) or super().is_leaf_module(m, module_qualified_name)


_RESHAPES = {"view": "reshape", "view_as": "reshape_as"}


def own_copy(net: nn.Module) -> nn.Module:
    """Return a copy, so that what the caller does to the network later cannot change the plan.

    Raises:
        TraceError: The network cannot be copied.
    """
    try:
        return copy.deepcopy(net)
    except Exception as error:  # whatever a user's attribute raises
        raise TraceError(f"{type(net).__name__} cannot be copied: {_reason(error)}") from error


def symbolic_trace(net: nn.Module) -> fx.Graph:
    """Trace a network with torch.fx; its views are reshapes, which take any batch.

    Raises:
        TraceError: Control flow depends on data, or the network does something torch.fx cannot follow.
    """
    if net._forward_hooks or net._forward_pre_hooks:
        raise TraceError(f"{type(net).__name__} has a forward hook, which torch.fx does not see; remove it")
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # torch.fx raises whatever the user's forward raises on a proxy
        raise TraceError(
            f"{type(net).__name__} cannot be traced by torch.fx{_place(error)}: {_reason(error)}; make its forward "
            "free of branches and loops that depend on values"
        ) from error
    inputs = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise TraceError(
            f"{type(net).__name__} must take one tensor, its forward takes {inputs}; wrap it in a module that "
            "fills in the others"
        )
    for node in graph.nodes:
        # Batches have their channels last, which a view cannot flatten. Another type is a view's own business.
        typed = any(isinstance(value, torch.dtype) for value in node.args)
        if node.op == "call_method" and node.target in _RESHAPES and not (typed or node.kwargs):
            node.target = _RESHAPES[node.target]
    return graph


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _place(error: Exception) -> str:
    """Return where in the user's code torch.fx gave up."""
    torch_folder = Path(torch.__file__).parent
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if torch_folder not in Path(frame.filename).parents and Path(frame.filename) != Path(__file__)
    ]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


class _Watch(fx.Interpreter):
    """Runs the graph and notes every value's shape, or the value itself if it is a whole number."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, Any] = {}
        self.numbers: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.shapes[n.name] = _shape(result)
        if isinstance(result, int):
            self.numbers[n.name] = result
        return result


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return [_shape(part) for part in value] if isinstance(value, tuple | list) else None


def _difference(few: Any, many: Any) -> Any:
    if isinstance(few, int):
        return many - few
    return few and type(few)(_difference(a, b) for a, b in zip(few, many, strict=False))


def shapes_of(net: nn.Module, graph: fx.Graph, example: Tensor) -> Shapes:
    """Run the network on two batches like the example that differ by one sample, and compare.

    Real numbers on the CPU: the meta device would load a good part of the compiler first, over a second.

    Raises:
        TraceError: The example does not go through the network.
    """
    # The copy takes the run's traces: running averages, for one.
    module = fx.GraphModule(copy.deepcopy(net).to("cpu"), graph)
    few, many = _Watch(module), _Watch(module)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for samples, watch in ((_SAMPLES, few), (_SAMPLES + 1, many)):
                watch.run(example[:1].detach().cpu().expand(samples, *example.shape[1:]))
    except Exception as error:  # whatever the user's network raises on an input that it is not made for
        raise TraceError(
            f"{type(net).__name__} does not take an input of shape {tuple(example.shape[1:])}: {_reason(error)}"
        ) from error
    grown = {name: _difference(shape, many.shapes[name]) for name, shape in few.shapes.items()}
    numbers = {name: n for name, n in few.numbers.items() if many.numbers.get(name) == n}
    return Shapes(few.shapes, grown, numbers)


class _Count(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, names: Collection[str]) -> None:
        super().__init__(module)
        self.names, self.macs = names, dict.fromkeys(names, 0.0)

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self.names:
            return super().run_node(n)
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self.macs[n.name] = counter.get_total_flops() / 2 / _SAMPLES
        return result


def macs_of_nodes(
    net: nn.Module, graph: fx.Graph, example: Tensor, names: Collection[str]
) -> dict[str, float]:
    """Return the forward MACs per sample of nodes that have no formula of ours, as torch counts them."""

    def count(device: str) -> dict[str, float]:
        # In training mode, in which attention has no path of its own that would not be counted either.
        run = _Count(fx.GraphModule(copy.deepcopy(net).train().to(device), graph), names)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            run.run(example[:1].detach().expand(_SAMPLES, *example.shape[1:]).to(device))
        return run.macs

    try:
        # On the meta device torch takes no fused paths, which it would not count.
        return count("meta")
    except Exception:  # whatever a forward raises that makes tensors of its own
        with sdpa_kernel(SDPBackend.MATH):
            return count("cpu")


def aliases_of(root: nn.Module) -> dict[str, str]:
    """Return every parameter name with the first name under which that parameter is known."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in root.named_parameters(remove_duplicate=False)}


def check_keep(net: nn.Module, keep: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the modules and the parameters to exempt.

    Raises:
        TraceError: A name is no module or parameter of the network.
    """
    keep, aliases = tuple(keep), aliases_of(net)
    known = {name for name, _ in net.named_modules(remove_duplicate=False) if name} | set(aliases)
    for name in keep:
        if name not in known:
            # A deep network has hundreds of layers: without a near one, name its parts only.
            near = difflib.get_close_matches(name, known, n=1) or [part for part, _ in net.named_children()]
            raise TraceError(
                f"keep names '{name}', which is no layer of {type(net).__name__}{did_you_mean(name, near)}"
            )
    inside = {p for p in aliases for name in keep if p == name or p.startswith(f"{name}.")}
    return frozenset(keep), frozenset(aliases[p] for p in inside)
