"""Sparse messages: time against torch.topk on the same vector, index cost against entropy, bytes of a network.

    python benchmarks/sparse_codec.py

Prints three Markdown tables. The steps of one repeat are interleaved, one thread; times are medians.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch

from leanfleet.nets import build
from leanfleet.randomness import numpy_generator, torch_generator
from leanfleet.wire import (
    PACKED,
    Message,
    Payload,
    RandomK,
    TopK,
    Values,
    decode,
    encode,
    pack,
    sparse,
    unpack,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{given.elements:,} normal numbers, density {given.density}, torch {torch.__version__}, one thread\n"
    )
    print_times(given.elements, given.density, given.repeats)
    print("\n| density | index bits a value | entropy log2(C(d, k))/k | ratio |\n|---:|---:|---:|---:|")
    for density in (0.001, 0.003, 0.01, 0.03, 0.1):
        print_index_cost(given.elements, density)
    print("\nResNet-20, top-k per tensor, whole message with container and checksum\n")
    print("| density | values | values sent | bytes | dense / sparse |\n|---:|---|---:|---:|---:|")
    for density in (0.1, 0.01, 0.001):
        print_network_bytes(density)


def print_times(elements: int, density: float, repeats: int) -> None:
    v = torch.randn(elements, generator=torch_generator(0, "benchmark"))
    top, rng = TopK(density), numpy_generator(0, "benchmark")
    payload = top.compress(v, rng)
    dense = payload.dense()
    data = encoded({"v": payload})
    expect = {"v": (v.dtype, tuple(v.shape))}
    count = len(payload.values)

    def decoded() -> Payload:
        return unpack(decode(data, {"packed": PACKED}).tensors["packed"], expect)["v"]

    assert torch.equal(decoded().dense(), dense)
    assert payload.positions is not None
    assert torch.equal(payload.positions, torch.topk(v.abs(), count).indices.sort().values)
    steps: dict[str, Callable[[], object]] = {
        "torch.topk(v)": lambda: torch.topk(v, count, sorted=False),
        "torch.topk(v.abs())": lambda: torch.topk(v.abs(), count, sorted=False),
        "TopK.compress": lambda: top.compress(v, rng),
        "encode": lambda: encoded({"v": payload}),
        "encode, from the dense tensor with zeros": lambda: encoded({"v": sparse(dense)}),
        "decode": decoded,
        "decode, to the dense tensor": lambda: decoded().dense(),
    }
    times = measure(steps, repeats)
    print(f"| step ({len(data):,} bytes) | milliseconds | of torch.topk(v) |\n|---|---:|---:|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds * 1e3:.1f} | {seconds / times['torch.topk(v)']:.3f} |")


def encoded(payloads: dict[str, Payload]) -> bytes:
    return encode(Message({"packed": pack(payloads)}))


def measure(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def print_index_cost(elements: int, density: float) -> None:
    payload = RandomK(density).compress(torch.ones(elements), numpy_generator(0, "benchmark"))
    count = len(payload.values)
    index_bits = 8 * (len(pack({"v": payload})) - 4 * count) / count
    nats = math.lgamma(elements + 1) - math.lgamma(count + 1) - math.lgamma(elements - count + 1)
    bound = nats / math.log(2) / count
    print(f"| {density} | {index_bits:.3f} | {bound:.3f} | {index_bits / bound:.4f} |")


def print_network_bytes(density: float) -> None:
    generator = torch_generator(0, "benchmark")
    shapes = {name: tensor.shape for name, tensor in build("resnet-20").named_parameters()}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    dense_bytes = 4 * sum(tensor.numel() for tensor in tensors.values())
    kinds: tuple[Values, ...] = ("exact", "bf16", "int8")
    for values in kinds:
        compressor = TopK(density, values)
        rng = numpy_generator(0, "benchmark")
        payloads = {name: compressor.compress(tensor, rng) for name, tensor in tensors.items()}
        length, sent = len(encoded(payloads)), sum(len(payload.values) for payload in payloads.values())
        print(f"| {density} | {values} | {sent:,} | {length:,} | {dense_bytes / length:.1f} |")


if __name__ == "__main__":
    main()
