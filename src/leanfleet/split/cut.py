"""Where a network is cut in two: the client's half, the server's half, and what crosses between them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from leanfleet.errors import NetworkError, did_you_mean
from leanfleet.subnet.trace import symbolic_trace

# What leaves a zero that a ReLU made a zero, and sends no gradient to what was zero there.
_KEEPS_ZEROS = (
    nn.LocalResponseNorm,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)


@dataclass(frozen=True, eq=False)
class Cut:
    """A network in two halves; parameters keep their names.

    Attributes:
        at: Where: a layer index or a name, as it was asked for.
        client: From the images to the cut.
        server: From the cut to the logits.
        shape: Of what crosses, for one sample.
        client_macs: Forward MACs per sample of the client's half.
        server_macs: Forward MACs per sample of the server's half.
        rectified: Whether what crosses comes out of a ReLU, through nothing but pooling by maximum, local response
            norms and the like: where it is 0, no gradient goes further.
    """

    at: int | str
    client: nn.Module
    server: nn.Module
    shape: tuple[int, ...]
    client_macs: int
    server_macs: int
    rectified: bool

    @property
    def values(self) -> int:
        """Numbers that cross, for one sample."""
        return torch.Size(self.shape).numel()


class Place(NamedTuple):
    """A node at which a network can be cut.

    Attributes:
        name: Name of the node.
        layer: The layer or operation it stands for.
        shape: Of what would cross, for one sample.
    """

    name: str
    layer: str
    shape: tuple[int, ...]


def cut(net: nn.Module, at: int | str, example: Tensor) -> Cut:
    """Cut a network in two.

    Args:
        net: The network; it is not changed.
        at: How many layers of an `nn.Sequential` the client holds; or the name of a layer or torch.fx node whose
            output crosses, for any network that torch.fx traces. A layer that contains others stands for its output.
        example: [N, ...] images, N at least 1.

    Raises:
        NetworkError: There is no such place; a half would be empty or without parameters; or more than one value
            crosses the cut, as at a skip connection.
    """
    client, server, rectified = _by_index(net, at) if isinstance(at, int) else _by_name(net, at, example)
    for half, module in (("client", client), ("server", server)):
        if next(module.parameters(), None) is None:
            raise NetworkError(
                f"cut {at!r}: the {half}'s half has no parameters; cut elsewhere{_some(net, example)}"
            )
    _check_sharing(at, client, server)
    crossing, client_macs = _macs(client, example[:1])
    _, server_macs = _macs(server, crossing)
    return Cut(at, client, server, tuple(crossing.shape[1:]), client_macs, server_macs, rectified)


def places(net: nn.Module, example: Tensor) -> list[Place]:
    """Return all nodes at which a network can be cut, with parameters on both sides, from the image on.

    Raises:
        NetworkError: torch.fx cannot trace the network.
    """
    graph = symbolic_trace(net)
    shapes = _shapes(net, graph, example)
    found = []
    for node in graph.nodes:
        if node.name in shapes and _crossing(graph, node) is None:
            client, server = (_module(net, half) for half in _halves(graph, node))
            if next(client.parameters(), None) is not None and next(server.parameters(), None) is not None:
                found.append(Place(node.name, str(node.target), shapes[node.name]))
    return found


def _by_index(net: nn.Module, at: int) -> tuple[nn.Module, nn.Module, bool]:
    if not isinstance(net, nn.Sequential):
        raise NetworkError(
            f"cut {at}: a number counts the layers of an nn.Sequential, and {type(net).__name__} is none; name a node"
        )
    if not 0 < at < len(net):
        raise NetworkError(f"cut {at}: leaves one half empty; {type(net).__name__} has {len(net)} layers")
    layers = list(net.named_children())
    client, server = (nn.Sequential(OrderedDict(half)) for half in (layers[:at], layers[at:]))
    return client, server, _rectified(_leaves(client))


def _by_name(net: nn.Module, at: str, example: Tensor) -> tuple[nn.Module, nn.Module, bool]:
    graph = symbolic_trace(net)
    node = _find(graph, at)
    if node is None:
        names = [place.name for place in places(net, example)]
        raise NetworkError(
            f"cut '{at}': there is no such layer or node{did_you_mean(at, names)}{_listed(names)}"
        )
    if node.op in ("placeholder", "output"):
        raise NetworkError(f"cut '{at}': leaves one half empty{_some(net, example)}")
    other = _crossing(graph, node)
    if other is not None:
        raise NetworkError(
            f"cut '{at}': '{other.name}' crosses it too (a skip connection?); one value may cross"
            f"{_some(net, example)}"
        )
    client, server = (_module(net, half) for half in _halves(graph, node))
    return client, server, _rectified(_operations(net, node))


def _find(graph: fx.Graph, at: str) -> fx.Node | None:
    """Return the node of a name, or the last node of the layer of that name."""
    named = next((node for node in graph.nodes if node.name == at), None)
    inside = [node for node in graph.nodes if at in _scopes(node)]
    return named or (inside[-1] if inside else None)


def _scopes(node: fx.Node) -> list[str]:
    stack = node.meta.get("nn_module_stack", {})
    return [str(entry[0] if isinstance(entry, tuple) else entry) for entry in stack.values()] + (
        [str(node.target)] if node.op == "call_module" else []
    )


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """Return a node and all that it is computed from."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += one.all_input_nodes
    return found


def _crossing(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Return a node before the cut, other than the cut itself, that is used behind it; parameters may be."""
    before = _ancestors(node)
    return next(
        (
            source
            for other in graph.nodes
            if other not in before
            for source in other.all_input_nodes
            if source in before and source is not node and source.op != "get_attr"
        ),
        None,
    )


def _halves(graph: fx.Graph, node: fx.Node) -> tuple[fx.Graph, fx.Graph]:
    before = _ancestors(node)
    client, server = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for one in graph.nodes:
        if one in before:
            copies[one] = client.node_copy(one, copies.__getitem__)
    client.output(copies[node])
    behind = {node: server.placeholder("crossing")}
    for one in graph.nodes:
        if one not in before or (one.op == "get_attr" and any(user not in before for user in one.users)):
            behind[one] = server.node_copy(one, behind.__getitem__)
    return client, server


def _module(net: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    return fx.GraphModule(net, graph)


def _shapes(net: nn.Module, graph: fx.Graph, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shapes, for one sample, of the floating tensors that the nodes give."""
    found: dict[str, tuple[int, ...]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.op.startswith("call") and isinstance(result, Tensor) and result.ndim > 1:
                found[n.name] = tuple(result.shape[1:])
            return result

    training = net.training
    with torch.no_grad():
        Watch(fx.GraphModule(net.eval(), graph)).run(example)
    net.train(training)
    return found


def _macs(half: nn.Module, example: Tensor) -> tuple[Tensor, int]:
    """Return what a half makes of one sample, and its multiply-accumulates."""
    training = half.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        result = half.eval()(example)
    half.train(training)
    if not isinstance(result, Tensor):
        raise NetworkError(f"a half gives a {type(result).__name__}, not a tensor; cut elsewhere")
    return result, counter.get_total_flops() // 2


def _check_sharing(at: int | str, client: nn.Module, server: nn.Module) -> None:
    own = {id(p): name for name, p in client.named_parameters()}
    for name, p in server.named_parameters():
        if id(p) in own:
            raise NetworkError(
                f"cut {at!r}: both halves use the parameter '{own[id(p)]}' ('{name}'); cut elsewhere"
            )


def _leaves(module: nn.Module) -> Iterator[nn.Module | None]:
    """Yield the layers of a half from its end on."""
    return (m for m in reversed(list(module.modules())) if not any(m.children()))


def _operations(net: nn.Module, node: fx.Node) -> Iterator[nn.Module | None]:
    """Yield the layers before the cut from its end on; None for what is no layer, and at a junction."""
    while len(node.all_input_nodes) == 1:
        relu = node.target in (torch.relu, torch.nn.functional.relu, "relu", "relu_")
        yield net.get_submodule(str(node.target)) if node.op == "call_module" else nn.ReLU() if relu else None
        node = node.all_input_nodes[0]


def _rectified(layers: Iterable[nn.Module | None]) -> bool:
    first = next((layer for layer in layers if not isinstance(layer, _KEEPS_ZEROS)), None)
    return isinstance(first, nn.ReLU)


def _some(net: nn.Module, example: Tensor) -> str:
    try:
        return _listed([place.name for place in places(net, example)])
    except NetworkError:
        return ""


def _listed(names: list[str]) -> str:
    if not names:
        return "; there is no place to cut it"
    shown = names if len(names) <= 6 else [*names[:3], "...", *names[-3:]]
    return f"; places to cut: {', '.join(shown)}"
