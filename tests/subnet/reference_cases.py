"""The reference networks, and for each by hand which layer reads which channels. See `masked.Case`."""

from __future__ import annotations

from functools import partial

import torch
from masked import Case
from torch import Tensor

from leanfleet import nets


def _densenet(layers: int) -> tuple[dict[str, int], object]:
    names = {"conv0": 24}
    width = 24
    for block in (1, 2, 3):
        for i in range(layers):
            names |= {f"block{block}.{i}.conv1": 48, f"block{block}.{i}.conv2": 12}
        width += 12 * layers
        if block < 3:
            width //= 2
            names[f"transition{block}.conv"] = width

    def reads(f) -> dict[str, Tensor]:
        found, sources = {}, [f("conv0")]
        for block in (1, 2, 3):
            for i in range(layers):
                layer = f"block{block}.{i}"
                found[f"{layer}.conv1"] = torch.cat(sources)
                found[f"{layer}.conv2"] = f(f"{layer}.conv1")
                sources.append(f(f"{layer}.conv2"))
            end = f"transition{block}.conv" if block < 3 else "classifier"
            found[end] = torch.cat(sources)
            sources = [f(end)] if block < 3 else []
        return found

    return names, reads


def _resnet(widths: tuple[int, int, int]) -> tuple[dict[str, int], object]:
    names = {"conv0": widths[0]}
    streams = {1: "conv0", 2: "stage2.0.conv2", 3: "stage3.0.conv2"}
    for stage, width in enumerate(widths, start=1):
        names |= {f"stage{stage}.0.conv1": width}
        if stage > 1:
            names |= {streams[stage]: width}
        names |= {f"stage{stage}.{i}.conv1": width for i in (1, 2)}

    def reads(f) -> dict[str, Tensor]:
        found = {"classifier": f(streams[3])}
        for stage in (1, 2, 3):
            for i in range(3):
                layer = f"stage{stage}.{i}"
                stream = f(streams[max(1, stage - 1) if i == 0 else stage])
                found |= {f"{layer}.conv1": stream, f"{layer}.conv2": f(f"{layer}.conv1")}
                if i == 0 and stage > 1:
                    found[f"{layer}.shortcut.conv"] = stream
        return found

    return names, reads


def _femnist_reads(f) -> dict[str, Tensor]:
    return {"conv2": f("conv1"), "hidden": f("conv2").repeat_interleave(16)}


def _digits_reads(f) -> dict[str, Tensor]:
    return {"conv2": f("conv1"), "conv3": f("conv2"), "hidden": f("conv3").repeat_interleave(4)}


def _case(name: str, known: tuple[dict[str, int], object], shape: tuple[int, ...] | None = None) -> Case:
    reference = nets.NETWORKS[name]
    groups, reads = known
    return Case(partial(nets.build, name), shape or reference.shape, groups, reads, keep=reference.keep)


_SMALL = (3, 8, 8)
"""The networks that end in an average take any image; this one is enough for what is tested with numbers."""

REFERENCES: dict[str, Case] = {
    "densenet-bc-19": _case("densenet-bc-19", _densenet(2), _SMALL),
    "densenet-bc-40": _case("densenet-bc-40", _densenet(6), _SMALL),
    "densenet-bc-100": _case("densenet-bc-100", _densenet(16), _SMALL),
    "femnist-cnn": _case("femnist-cnn", ({"conv1": 32, "conv2": 64}, _femnist_reads)),
    "femnist-cnn-small": _case("femnist-cnn-small", ({"conv1": 16, "conv2": 32}, _femnist_reads)),
    "resnet-20": _case("resnet-20", _resnet((16, 32, 64)), _SMALL),
    "resnet-20-small": _case("resnet-20-small", _resnet((8, 16, 32)), _SMALL),
    "digits-cnn": _case("digits-cnn", ({"conv1": 32, "conv2": 64, "conv3": 64}, _digits_reads)),
    "digits-cnn-small": _case("digits-cnn-small", ({"conv1": 16, "conv2": 32, "conv3": 32}, _digits_reads)),
}
