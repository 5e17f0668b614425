"""A network cut in two: the client's half, the server's half, and what crosses between them."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from leanfleet.errors import NetworkError, TraceError, did_you_mean
from leanfleet.nets.layout import take_channels_last
from leanfleet.nets.macs import MacCounter
from leanfleet.split.counting import counted
from leanfleet.split.graph import before, crossing, find, halves, layers_of, narrow, rectified, traced

_SHOWN = 6  # places that an error names


@dataclass(frozen=True, eq=False)
class Cut:
    """A network in two halves; parameters keep their names.

    Attributes:
        at: Where: a number of layers or a name, as it was asked for.
        client: From the images to the cut.
        server: From the cut to the logits.
        shape: Of what crosses, for one sample.
        outputs: Logits for one sample.
        client_macs: Forward MACs per sample of the client's half.
        server_macs: Forward MACs per sample of the server's half.
        rectified: Whether what crosses comes out of a ReLU, through nothing but pooling by maximum, local response
            norms and the like: where it is 0, no gradient goes further.
    """

    at: int | str
    client: nn.Module
    server: nn.Module
    shape: tuple[int, ...]
    outputs: int
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
        node: Its name.
        layer: The layer it stands for, or the operation, and inside of which layer.
        layers: How many layers of an `nn.Sequential` it ends; None where it is inside of one.
        shape: Of what would cross, for one sample.
        client_macs: Forward MACs per sample up to it.
        server_macs: Forward MACs per sample from there on.
        client_params: Parameters up to it.
        server_params: Parameters from there on.
    """

    node: str
    layer: str
    layers: int | None
    shape: tuple[int, ...]
    client_macs: int
    server_macs: int
    client_params: int
    server_params: int

    @property
    def values(self) -> int:
        """Numbers that would cross, for one sample."""
        return torch.Size(self.shape).numel()


def cut(net: nn.Module, at: int | str, example: Tensor) -> Cut:
    """Cut a network in two.

    Args:
        net: The network, a classifier; it is not changed.
        at: How many layers of an `nn.Sequential` the client holds; or the name of a layer or torch.fx node whose
            output crosses, for any network that torch.fx traces. A layer that contains others stands for its output.
        example: [N, ...] images, N at least 1.

    Raises:
        NetworkError: There is no such place; a half would be empty or without parameters; more than one value
            crosses the cut, as at a skip connection; or the network does not take such images.
    """
    client, server, zeros_end = _by_number(net, at) if isinstance(at, int) else _by_name(net, at, example)
    for half, module in (("client", client), ("server", server)):
        if next(module.parameters(), None) is None:
            raise NetworkError(
                f"cut {at!r}: the {half}'s half has no parameters; cut elsewhere{_listed(net, example)}"
            )
    _check_sharing(at, client, server)
    crosses, client_macs = _run(client, example[:1])
    if example.ndim == 4:
        batch = example[:1].clone(memory_format=torch.channels_last)
        take_channels_last(client, batch)
        take_channels_last(server, _run(client, batch)[0])
    logits, server_macs = _run(server, crosses)
    if logits.ndim != 2:
        raise NetworkError(
            f"{type(net).__name__} gives {tuple(logits.shape)} for one image, not (1, classes)"
        )
    shape, outputs = tuple(crosses.shape[1:]), logits.shape[1]
    return Cut(at, client, server, shape, outputs, client_macs, server_macs, zeros_end)


def places(net: nn.Module, example: Tensor) -> list[Place]:
    """Return all nodes at which a network can be cut, with parameters on both sides, from the image on.

    Args:
        net: The network; it is not changed.
        example: [N, ...] images, N at least 1.

    Raises:
        NetworkError: torch.fx cannot trace the network, or it does not take such images.
    """
    graph = traced(net)
    watch = _watched(net, graph, example[:1])
    ends, total = _ends(net, graph), sum(watch.macs.values())
    params = {node: dict(_params(net, node)) for node in graph.nodes}
    found = []
    for node in narrow(graph):
        ahead = before(node)
        own = {p: n for one in ahead for p, n in params[one].items()}
        others = {p: n for one in graph.nodes if one not in ahead for p, n in params[one].items()}
        if node not in watch.shapes or not own or not others or own.keys() & others.keys():
            continue
        macs = sum(watch.macs[one] for one in ahead)
        counts = sum(own.values()), sum(others.values())
        shape = watch.shapes[node]
        found.append(Place(node.name, _layer(node), ends.get(node), shape, macs, total - macs, *counts))
    return found


def _by_number(net: nn.Module, at: int) -> tuple[nn.Module, nn.Module, bool]:
    if not isinstance(net, nn.Sequential) or type(net).forward is not nn.Sequential.forward:
        raise NetworkError(
            f"cut {at}: a number counts the layers of an nn.Sequential, and {type(net).__name__} is none; name a node"
        )
    # Not `named_children`: it leaves out what is there twice.
    layers = list(net._modules.items())
    if not 0 < at < len(layers):
        raise NetworkError(
            f"cut {at}: leaves one half empty; {type(net).__name__} has {len(layers)} layers, cut at 1 to "
            f"{len(layers) - 1}"
        )
    client, server = (nn.Sequential(OrderedDict(half)) for half in (layers[:at], layers[at:]))
    for half in (client, server):
        half.training = net.training
    return client, server, _ends_rectified(client)


def _by_name(net: nn.Module, at: str, example: Tensor) -> tuple[nn.Module, nn.Module, bool]:
    graph = traced(net)
    node = find(graph, at)
    if node is None:
        raise NetworkError(f"cut '{at}': there is no such layer or node{_nearest(graph, at)}")
    if node.op in ("placeholder", "output"):
        raise NetworkError(f"cut '{at}': leaves one half empty{_listed(net, example)}")
    other = crossing(graph, node)
    if other is not None:
        raise NetworkError(
            f"cut '{at}': '{other.name}' crosses it too (a skip connection?); one value may cross"
            f"{_listed(net, example)}"
        )
    client, server = (fx.GraphModule(net, half) for half in halves(graph, node))
    return client, server, rectified(net, node)


def _ends_rectified(half: nn.Module) -> bool:
    try:
        graph = traced(half)
    except TraceError:
        # What torch.fx cannot follow may do anything; then whole gradients travel.
        return False
    output = next(node for node in graph.nodes if node.op == "output")
    return rectified(half, output.all_input_nodes[0])


class _Watch(fx.Interpreter):
    """Runs a graph; notes what its calls cost, and the shapes, for one sample, of the tensors they give."""

    def __init__(self, module: fx.GraphModule, counter: MacCounter) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.macs: dict[fx.Node, int] = {}
        self._counter = counter

    def run_node(self, n: fx.Node) -> Any:
        already = self._counter.macs
        result = super().run_node(n)
        self.macs[n] = self._counter.macs - already
        if isinstance(result, Tensor) and result.is_floating_point() and result.ndim > 1:
            self.shapes[n] = tuple(result.shape[1:])
        return result


def _watched(net: nn.Module, graph: fx.Graph, example: Tensor) -> _Watch:
    with counted(net, example) as counter:
        watch = _Watch(fx.GraphModule(net, graph), counter)
        # The module has a copy of the graph; ours is the one that is asked about.
        watch.graph = graph
        watch.run(example)
    return watch


def _run(half: nn.Module, example: Tensor) -> tuple[Tensor, int]:
    """Return what a half makes of one sample, and its multiply-accumulates."""
    with counted(half, example) as counter:
        result = half(example)
    if not isinstance(result, Tensor):
        raise NetworkError(f"a half gives a {type(result).__name__}, not a tensor; cut elsewhere")
    return result, counter.macs


def _check_sharing(at: int | str, client: nn.Module, server: nn.Module) -> None:
    own = {id(t): name for name, t in (*client.named_parameters(), *client.named_buffers())}
    for name, t in (*server.named_parameters(), *server.named_buffers()):
        if id(t) in own:
            raise NetworkError(f"cut {at!r}: both halves use '{own[id(t)]}' ('{name}'); cut elsewhere")


def _params(net: nn.Module, node: fx.Node) -> Iterator[tuple[int, int]]:
    """Yield identity and size of all parameters that a node uses."""
    if node.op == "call_module":
        yield from ((id(p), p.numel()) for p in net.get_submodule(str(node.target)).parameters())
    elif node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = getattr(net.get_submodule(owner), name)
        if isinstance(value, nn.Parameter):
            yield id(value), value.numel()


def _ends(net: nn.Module, graph: fx.Graph) -> dict[fx.Node, int]:
    """Return the nodes with which layers of a sequential network end, and which layers these are, from 1 on."""
    if not isinstance(net, nn.Sequential) or len(set(map(id, net._modules.values()))) < len(net._modules):
        return {}
    last = {layers_of(node)[0]: node for node in graph.nodes if layers_of(node)}
    return {last[name]: number for number, name in enumerate(net._modules, 1) if name in last}


def _layer(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    return " ".join([*layers_of(node)[-1:], getattr(node.target, "__name__", str(node.target))])


def _nearest(graph: fx.Graph, at: str) -> str:
    nodes = [node for node in graph.nodes if node.op.startswith("call")]
    known = list(dict.fromkeys(name for node in nodes for name in (*layers_of(node), node.name)))
    near = difflib.get_close_matches(at, known, n=1)
    return did_you_mean(at, near) if near else _few([node.name for node in narrow(graph)])


def _listed(net: nn.Module, example: Tensor) -> str:
    try:
        return _few([place.node for place in places(net, example)])
    except NetworkError:
        return ""


def _few(names: list[str]) -> str:
    if not names:
        return "; there is no place to cut it"
    half = _SHOWN // 2
    shown = names if len(names) <= _SHOWN else [*names[:half], "...", *names[-half:]]
    return f"; places to cut: {', '.join(shown)}"
