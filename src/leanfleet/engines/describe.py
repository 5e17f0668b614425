"""What there is: networks with their channel groups and costs, and the machine with its packages and data."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanfleet.data import KNOWN, find
from leanfleet.engines.local import default_workers
from leanfleet.errors import NetworkError, UserError
from leanfleet.nets import NETWORKS, build
from leanfleet.nets.own import maker
from leanfleet.split import cut, places
from leanfleet.subnet import SubnetPlan

_PACKAGES = (
    *("torch", "numpy", "pydantic", "typer", "rich", "safetensors", "networkx", "tomli-w"),
    *("datasets", "flwr-datasets", "scikit-learn", "pillow", "matplotlib", "pymoo", "flwr", "psutil"),
)


def network(
    name: str,
    *,
    keep: Sequence[str] | None = None,
    classes: int | None = None,
    shape: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    """Return a network's layers, channel groups and costs, ready for JSON.

    Args:
        name: What `leanfleet.nets.build` takes.
        keep: Layers whose channels are never dropped; the reference network's own choice if None.
        classes: Number of classes, where it is not the usual one.
        shape: Shape (channels, height, width) of one image; needed for a network of the user's.

    Returns:
        `name`, `shape`, `classes`, `params`; forward MACs per sample as `macs` (all), `macs_conv` (convolutions),
        `macs_half` (expected, one rate of 0.5 for all groups); `groups` (name, channels, layers) and `layers`
        (layer, kind, macs).

    Raises:
        NetworkError: The network is unknown, cannot be made or cannot be traced.
    """
    reference = NETWORKS.get(name)
    net, size = _built(name, classes, shape)
    usual = reference.keep if reference else ()
    plan = SubnetPlan.trace(net, torch.zeros(1, *size), usual if keep is None else keep)
    layers = [{"layer": t.layer, "kind": t.kind, "macs": plan.term_macs(t)} for t in plan.terms]
    return {
        "name": name,
        "shape": list(size),
        "classes": classes or (reference.classes if reference else None),
        "params": sum(p.numel() for p in net.parameters()),
        "macs": plan.macs_of(plan.full),
        "macs_conv": sum(layer["macs"] for layer in layers if layer["kind"] == "conv"),
        "macs_half": plan.macs(plan.uniform(0.5)),
        "groups": [{"name": g.name, "channels": g.channels, "layers": list(g.layers)} for g in plan.groups],
        "layers": layers,
    }


def cut_places(
    name: str, *, classes: int | None = None, shape: tuple[int, int, int] | None = None
) -> list[dict[str, Any]]:
    """Return where a network can be cut in two, ready for JSON; arguments and errors as for `network`.

    Returns:
        For each place `node`, `layer`, `layers` (how many of a sequential network it ends; None inside of one),
        `shape` and `values` that cross for one sample, and forward MACs per sample and parameters of both halves:
        `client_macs`, `server_macs`, `client_params`, `server_params`.
    """
    net, size = _built(name, classes, shape)
    return [
        {**place._asdict(), "shape": list(place.shape), "values": place.values}
        for place in places(net, torch.zeros(1, *size))
    ]


def cut_at(
    name: str, at: str, *, classes: int | None = None, shape: tuple[int, int, int] | None = None
) -> dict[str, Any]:
    """Return what the halves of a network cost, ready for JSON.

    Args:
        name: See `network`.
        at: A number of layers, or the name of a layer or node.
        classes: See `network`.
        shape: See `network`.

    Raises:
        NetworkError: It cannot be cut there, or see `network`.
    """
    net, size = _built(name, classes, shape)
    found = cut(net, int(at) if at.isdecimal() else at, torch.zeros(1, *size))
    params = {
        f"{half}_params": sum(p.numel() for p in module.parameters())
        for half, module in (("client", found.client), ("server", found.server))
    }
    macs = {"client_macs": found.client_macs, "server_macs": found.server_macs}
    crosses = {"shape": list(found.shape), "values": found.values, "rectified": found.rectified}
    return {"name": name, "at": found.at, **crosses, **macs, **params}


def machine() -> dict[str, Any]:
    """Return versions, cores, GPUs and where data sets were found, ready for JSON.

    Data sets are `digits` and those known by name: a path, `hf:owner/name` for what would be fetched from the hub,
    "built in", or None for what is not to be had.
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    packages = {name: _version(name) for name in _PACKAGES}
    sets = {
        name: str(find(name) or (f"hf:{known.hub}" if known.hub else "")) for name, known in KNOWN.items()
    }
    digits = "built in" if packages["scikit-learn"] else ""
    return {
        "leanfleet": _version("leanfleet"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu(),
        "packages": packages,
        "cores": os.cpu_count(),
        "workers": default_workers(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
        "data_folder": os.environ.get("LEANFLEET_DATA") or None,
        "data": {name: found or None for name, found in {"digits": digits, **sets}.items()},
    }


def _built(
    name: str, classes: int | None, shape: tuple[int, int, int] | None
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network and the shape of its images."""
    reference = NETWORKS.get(name)
    shape = shape or (reference.shape if reference else None)
    if shape is None and ":" in name:
        # Whether it is there is said first.
        maker(name, None, {"classes": classes, "shape": None})
        raise NetworkError(f"network '{name}': say what images it takes, for example --shape 3,32,32")
    return build(name, classes=classes, shape=shape), shape or ()


def _cpu() -> str:
    """Return the processor's name, as far as it is known."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parse_shape(text: str) -> tuple[int, int, int]:
    """Return the shape (channels, height, width) that is written like `3,32,32`.

    Raises:
        UserError: It is not.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--shape {text}: should be channels,height,width, such as 3,32,32")
    channels, height, width = map(int, parts)
    return channels, height, width


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
