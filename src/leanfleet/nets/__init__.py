"""Reference networks, and networks of the user's own by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import nn

from leanfleet.errors import NetworkError, did_you_mean
from leanfleet.nets.cnn import digits_cnn, femnist_cnn
from leanfleet.nets.densenet import densenet_bc
from leanfleet.nets.ensemble import VotingEnsemble, vote
from leanfleet.nets.lenet import lenet
from leanfleet.nets.macs import forward_macs
from leanfleet.nets.own import home, maker, split_file
from leanfleet.nets.resnet import resnet_20
from leanfleet.nets.vgg import vgg_11
from leanfleet.randomness import key

__all__ = ["NETWORKS", "Reference", "VotingEnsemble", "build", "forward_macs", "home", "split_file", "vote"]


@dataclass(frozen=True)
class Reference:
    """A network that comes with the package.

    Attributes:
        name: What experiment files call it.
        build: Called with `classes` and `channels`, gives the network.
        shape: Shape (channels, height, width) of one image, unless the data say otherwise.
        classes: Number of classes, unless the data say otherwise.
        keep: Layers that are never cut.
        small: Name of the network that stands for it on devices that cannot afford it.
    """

    name: str
    build: Callable[..., nn.Module]
    shape: tuple[int, int, int]
    classes: int
    keep: tuple[str, ...] = ()
    small: str | None = None


_CIFAR: Final = (3, 32, 32)
_FEMNIST: Final = (1, 28, 28)
_DIGITS: Final = (1, 8, 8)
# Rapp et al. 2022 cut convolutions: in the FEMNIST network, and so in ours for digits, not the linear layer.
_HIDDEN: Final = ("hidden",)
# A response norm divides a channel by its neighbours, who would be others in a narrow network.
_NORMED: Final = ("layer1", "layer2")
_VGG_11: Final = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)

NETWORKS: Final[dict[str, Reference]] = {
    reference.name: reference
    for reference in (
        Reference("densenet-bc-19", partial(densenet_bc, 19), _CIFAR, 10, small="densenet-bc-19-small"),
        Reference("densenet-bc-19-small", partial(densenet_bc, 19, 6), _CIFAR, 10),
        Reference("densenet-bc-40", partial(densenet_bc, 40), _CIFAR, 10, small="densenet-bc-19"),
        Reference("densenet-bc-100", partial(densenet_bc, 100), _CIFAR, 100, small="densenet-bc-40"),
        Reference(
            "femnist-cnn", partial(femnist_cnn, (32, 64)), _FEMNIST, 62, _HIDDEN, small="femnist-cnn-small"
        ),
        Reference("femnist-cnn-small", partial(femnist_cnn, (16, 32)), _FEMNIST, 62, _HIDDEN),
        Reference("resnet-20", partial(resnet_20, (16, 32, 64)), _CIFAR, 10, small="resnet-20-small"),
        Reference("resnet-20-small", partial(resnet_20, (8, 16, 32)), _CIFAR, 10),
        Reference(
            "digits-cnn",
            partial(digits_cnn, (32, 64, 64), 128),
            _DIGITS,
            10,
            _HIDDEN,
            small="digits-cnn-small",
        ),
        Reference("digits-cnn-small", partial(digits_cnn, (16, 32, 32), 64), _DIGITS, 10, _HIDDEN),
        Reference("lenet", partial(lenet, (20, 50, 800, 500)), _CIFAR, 10, _NORMED, small="lenet-small"),
        Reference("lenet-small", partial(lenet, (10, 25, 400, 250)), _CIFAR, 10, _NORMED),
        Reference("vgg-11", partial(vgg_11, _VGG_11), _CIFAR, 10, small="vgg-11-small"),
        Reference("vgg-11-small", partial(vgg_11, tuple(width // 2 for width in _VGG_11)), _CIFAR, 10),
    )
}


def build(
    name: str,
    *,
    classes: int | None = None,
    shape: tuple[int, int, int] | None = None,
    seed: int = 0,
    folder: Path | None = None,
) -> nn.Module:
    """Return a new network on the CPU; equal seeds give equal parameters, the global random state stays.

    Args:
        name: A key of `NETWORKS`, or a function of the user's own: `package.module:function`, found in `folder`, in
            the current folder or among the installed packages, or `FOLDER/FILE.py:function`. It is called with those
            of the keywords `classes` and `shape` that it has and that are known.
        classes: Number of classes of the data.
        shape: Shape (channels, height, width) of one image of the data.
        seed: Seed of the initialisation.
        folder: See `name`.

    Raises:
        NetworkError: If the name is unknown, the network cannot be made, or the images do not fit it.
    """
    if ":" in name:
        make = maker(name, folder, {"classes": classes, "shape": shape})
    elif name in NETWORKS:
        make = _reference(NETWORKS[name], classes, shape)
    else:
        if name.endswith(".py"):
            raise NetworkError(f"network '{name}': which function of that file? Should read {name}:FUNCTION")
        raise NetworkError(f"network '{name}' is unknown{did_you_mean(name, NETWORKS)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, "network"))
        return make()


def _reference(
    reference: Reference, classes: int | None, shape: tuple[int, int, int] | None
) -> Callable[[], nn.Module]:
    shape = shape or reference.shape

    def make() -> nn.Module:
        net = reference.build(classes=classes or reference.classes, channels=shape[0])
        try:
            # Not on the meta device, which would load torch's compiler first: a second or two.
            with torch.no_grad():
                net.eval()(torch.zeros(2, *shape))
        except RuntimeError as error:
            sizes = ["x".join(map(str, size)) for size in (shape, reference.shape)]
            raise NetworkError(
                f"network '{reference.name}': images of {sizes[0]} do not fit; it is made for {sizes[1]}"
            ) from error
        return net.train()

    return make
