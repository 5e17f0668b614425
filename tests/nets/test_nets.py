from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from leanfleet.errors import NetworkError
from leanfleet.nets import NETWORKS, build
from leanfleet.subnet.trace import symbolic_trace


def macs_of_layers(net: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Forward MACs of every conv and linear, from the shapes that a forward pass meets."""
    counts: Counter[str] = Counter()

    def count(name: str, layer: nn.Conv2d | nn.Linear, output: Tensor) -> None:
        counts[name] += output[0].numel() * layer.weight[0].numel()

    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda m, _, out, name=name: count(name, m, out))
    with FlopCounterMode(display=False) as flops:
        net(torch.zeros(2, *shape))
    assert flops.get_total_flops() == 2 * 2 * sum(counts.values())  # 2 images, 2 FLOPs a MAC
    return dict(counts)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


DENSENET_PARTS = (
    r"conv0",
    r"block1\.\d+\.conv1",
    r"block1\.\d+\.conv2",
    r"transition1\.conv",
    r"block2\.\d+\.conv1",
    r"block2\.\d+\.conv2",
    r"transition2\.conv",
    r"block3\.\d+\.conv1",
    r"block3\.\d+\.conv2",
    r"classifier",
)
# Rapp et al. 2022, reconstructed: MACs of the parts above, conv layers, parameters for 10 and 100 classes.
DENSENETS = {
    "densenet-bc-19": (
        (663552, 2949120, 10616832, 1179648, 737280, 2654208, 294912, 184320, 663552, 480),
        (19_943_424, 15, 44_410, 48_820),
    ),
    "densenet-bc-40": (
        (663552, 15925248, 31850496, 4718592, 5750784, 7962624, 1843200, 1658880, 1990656, 1320),
        (72_364_032, 39, 176_122, 188_092),
    ),
    "densenet-bc-100": (
        (663552, 89653248, 84934656, 23887872, 38928384, 21233664, 11520000, 11796480, 5308416, 34200),
        (287_926_272, 99, 769_162, 800_032),
    ),
}


@pytest.mark.parametrize("name", DENSENETS)
def test_densenet_counts_equal_the_table_part_by_part(name: str) -> None:
    parts, (convs, layers, parameters_10, parameters_100) = DENSENETS[name]
    reference = NETWORKS[name]
    macs = macs_of_layers(build(name), reference.shape)
    found = [sum(m for n, m in macs.items() if re.fullmatch(part, n)) for part in DENSENET_PARTS]
    assert tuple(found) == parts
    assert sum(macs.values()) == sum(parts) == convs + parts[-1]
    assert len(macs) == layers + 1
    assert parameters(build(name, classes=10)) == parameters_10
    assert parameters(build(name, classes=100)) == parameters_100


@pytest.mark.parametrize(
    ("name", "macs", "total", "count"),
    [
        ("femnist-cnn", (460_800, 3_276_800, 262_144, 15_872), 4_015_616, 330_430),
        ("femnist-cnn-small", (230_400, 819_200, 131_072, 15_872), 1_196_544, 160_510),
        ("digits-cnn", (18_432, 1_179_648, 589_824, 32_768, 1_280), 1_821_952, 90_090),
        ("digits-cnn-small", (9_216, 294_912, 147_456, 8_192, 640), 460_416, 23_034),
    ],
)
def test_cnn_counts(name: str, macs: tuple[int, ...], total: int, count: int) -> None:
    net = build(name)
    assert tuple(macs_of_layers(net, NETWORKS[name].shape).values()) == macs
    assert sum(macs) == total
    assert parameters(net) == count


def test_resnet_20_counts() -> None:
    net = build("resnet-20")
    macs = macs_of_layers(net, (3, 32, 32))
    block, first, projection = 2_359_296, 1_179_648, 131_072
    assert sum(macs.values()) == 442_368 + 6 * block + 2 * (first + 5 * block + projection) + 640
    assert parameters(net) == 272_474
    assert len(list(net.parameters())) == 65


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    def test_small_version_is_known_and_cheaper(self, name: str) -> None:
        reference = NETWORKS[name]
        if reference.small is None:
            return
        small = NETWORKS[reference.small]
        ours = sum(macs_of_layers(build(name, classes=10), reference.shape).values())
        theirs = sum(macs_of_layers(build(small.name, classes=10), reference.shape).values())
        assert small.shape == reference.shape
        assert 0.2 < theirs / ours < 1 / 3

    def test_kept_layers_exist(self, name: str) -> None:
        assert set(NETWORKS[name].keep) <= {layer for layer, _ in build(name).named_modules()}

    def test_traces_and_has_no_literal_sizes(self, name: str) -> None:
        net = build(name).eval()
        graph = fx.GraphModule(net, symbolic_trace(net))
        x = torch.randn(3, *NETWORKS[name].shape)
        torch.testing.assert_close(graph(x), net(x))
        assert not [node for node in graph.graph.nodes if node.target in ("view", "reshape", "size")]

    def test_classes_and_channels_follow_the_data(self, name: str) -> None:
        _, height, width = NETWORKS[name].shape
        net = build(name, classes=7, shape=(2, height, width))
        assert net(torch.zeros(3, 2, height, width)).shape == (3, 7)

    def test_seed_decides_and_the_global_stream_stays(self, name: str) -> None:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one, same, other = (build(name, seed=seed).state_dict() for seed in (3, 3, 4))
        assert torch.equal(before, torch.get_rng_state())
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert any(not torch.equal(one[key], other[key]) for key in one)

    def test_norms_are_ordinary(self, name: str) -> None:
        default = nn.BatchNorm2d(1)
        for layer in build(name).modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert (layer.eps, layer.affine, layer.track_running_stats) == (default.eps, True, True)


def test_densenet_takes_other_image_sizes() -> None:
    assert build("densenet-bc-19", shape=(1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("femnist-cnn", (1, 8, 8)), ("femnist-cnn", (3, 32, 32)), ("densenet-bc-19", (3, 3, 3))],
)
def test_images_that_do_not_fit_are_refused(name: str, shape: tuple[int, int, int]) -> None:
    size = "x".join(map(str, shape))
    with pytest.raises(NetworkError, match=f"'{name}': images of {size} do not fit") as caught:
        build(name, shape=shape)
    assert "\n" not in str(caught.value)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(NetworkError, match=r"'densnet-bc-40' is unknown; did you mean 'densenet-bc-40'\?"):
        build("densnet-bc-40")
