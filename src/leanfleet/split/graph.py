"""Where a network's torch.fx graph can be cut in two, and the two graphs that this gives."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn

from leanfleet.subnet.trace import symbolic_trace

# What leaves a zero that a ReLU made a zero, and sends no gradient to what was zero there.
_KEEPS_ZEROS = (
    nn.LocalResponseNorm,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
)
_RELUS = (torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_")
_MODE = "training"


def traced(net: nn.Module) -> fx.Graph:
    """Return a network's graph; its functional dropouts and norms follow the mode, as their modules do.

    Raises:
        TraceError: torch.fx cannot trace the network.
    """
    graph = symbolic_trace(net)
    for node in list(graph.nodes):
        # `training=self.training` is traced as the value that it has now.
        if node.op == "call_function" and node.kwargs.get(_MODE) is net.training:
            with graph.inserting_before(node):
                node.update_kwarg(_MODE, graph.create_node("get_attr", _MODE))
    return graph


def find(graph: fx.Graph, at: str) -> fx.Node | None:
    """Return the node of a name, or the last node of the layer of that name."""
    named = next((node for node in graph.nodes if node.name == at), None)
    inside = [node for node in graph.nodes if at in layers_of(node)]
    return named or (inside[-1] if inside else None)


def layers_of(node: fx.Node) -> list[str]:
    """Return the names of the layers that a node belongs to, the outermost first."""
    stack = node.meta.get("nn_module_stack", {})
    own = [str(node.target)] if node.op == "call_module" else []
    return [str(entry[0] if isinstance(entry, tuple) else entry) for entry in stack.values()] + own


def before(node: fx.Node) -> set[fx.Node]:
    """Return a node and all that it is computed from."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += one.all_input_nodes
    return found


def crossing(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """Return a node before the cut, other than the cut itself, that is used behind it; parameters may be."""
    client = before(node)
    return next(
        (
            source
            for other in graph.nodes
            if other not in client
            for source in other.all_input_nodes
            if source in client and source is not node and source.op != "get_attr"
        ),
        None,
    )


def narrow(graph: fx.Graph) -> list[fx.Node]:
    """Return, in order, the nodes that are calls and the only value of theirs and before that is used later on."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    found, last_use = [], 0
    for node, place in order.items():
        if node.op.startswith("call") and last_use <= place and crossing(graph, node) is None:
            found.append(node)
        if node.op != "get_attr":
            # A value that nothing uses was computed from one that crosses.
            last_use = max([last_use, *(order[user] for user in node.users)])
    return found


def halves(graph: fx.Graph, node: fx.Node) -> tuple[fx.Graph, fx.Graph]:
    """Return the graphs up to a node, and from there on, where nothing else crosses."""
    ahead = before(node)
    client, server = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for one in graph.nodes:
        if one in ahead:
            copies[one] = client.node_copy(one, copies.__getitem__)
    client.output(copies[node])
    behind = {node: server.placeholder("crossing")}
    for one in graph.nodes:
        if one not in ahead or (one.op == "get_attr" and any(user not in ahead for user in one.users)):
            behind[one] = server.node_copy(one, behind.__getitem__)
    return client, server


def rectified(net: nn.Module, node: fx.Node) -> bool:
    """Return whether a value comes out of a ReLU, and then through nothing but what keeps its zeros."""
    for layer in _layers_back(net, node):
        if isinstance(layer, nn.ReLU):
            return True
        if not isinstance(layer, _KEEPS_ZEROS):
            return False
    return False


def _layers_back(net: nn.Module, node: fx.Node) -> Iterator[nn.Module | None]:
    """Yield the layers before the cut from its end on, up to a junction; None for what is no layer."""
    while len(node.all_input_nodes) == 1:
        relu = node.target in _RELUS
        yield net.get_submodule(str(node.target)) if node.op == "call_module" else nn.ReLU() if relu else None
        node = node.all_input_nodes[0]
