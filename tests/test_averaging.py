from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leanfleet.averaging import HolderSum, Positions, WeightedSum

SHAPES = {"w": (4, 3, 2), "b": (4,), "s": ()}
seeds = st.integers(0, 10**6)
weights = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=6)


def draw(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def draw_positions(seed: int) -> dict[str, Positions]:
    generator = torch.Generator().manual_seed(seed)
    out = torch.randperm(4, generator=generator)[: 1 + seed % 4].sort().values
    inner = torch.randperm(3, generator=generator)[: 1 + seed % 3].sort().values
    return {
        "w": [(out, inner), (None, inner), (out, None), (out,), (None, None)][seed % 5],
        "b": (out,),
        "s": (),
    }


def cut(tensors: dict[str, Tensor], positions: dict[str, Positions]) -> dict[str, Tensor]:
    parts = dict(tensors)
    for name, kept in positions.items():
        for dim, ids in enumerate(kept):
            if ids is not None:
                parts[name] = parts[name].index_select(dim, ids)
    return parts


def numpy_of(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class TestWeightedSum:
    @given(weights, seeds)
    def test_mean_equals_numpy(self, weights: list[float], seed: int) -> None:
        total = WeightedSum()
        for i, weight in enumerate(weights):
            total.add(draw(seed + i), weight)
        mean = total.mean()
        assert mean is not None
        for name in SHAPES:
            values = [numpy_of(draw(seed + i))[name] for i in range(len(weights))]
            expected = np.average(values, axis=0, weights=weights)
            np.testing.assert_allclose(mean[name].numpy(), expected, rtol=1e-10, atol=1e-12)

    @given(weights, seeds, st.integers(0, 6), st.booleans())
    def test_any_split_over_workers_in_any_order_gives_the_same(
        self, weights: list[float], seed: int, split: int, swap: bool
    ) -> None:
        whole, one, other = WeightedSum(), WeightedSum(), WeightedSum()
        for i, weight in enumerate(weights):
            whole.add(draw(seed + i), weight)
            (one if i < split else other).add(draw(seed + i), weight)
        merged, rest = (one, other) if swap else (other, one)
        merged.merge(WeightedSum.from_tensors(rest.tensors()))
        mean, expected = merged.mean(), whole.mean()
        assert mean is not None
        assert expected is not None
        close(mean, expected)

    def test_float32_inputs_are_summed_in_float64(self) -> None:
        total = WeightedSum()
        for value in (1e8, 1.0, -1e8):
            total.add({"w": torch.tensor([value])}, 1.0)
        mean = total.mean()
        assert mean is not None
        assert mean["w"].dtype == torch.float64
        assert float(mean["w"]) == pytest.approx(1 / 3, rel=1e-15)

    def test_empty_is_none_also_merged_and_sent(self) -> None:
        total = WeightedSum()
        total.merge(WeightedSum.from_tensors(WeightedSum().tensors()))
        assert total.mean() is None

    def test_weight_0_adds_nothing_not_even_nan(self) -> None:
        total = WeightedSum()
        total.add({"w": torch.tensor([float("nan")])}, 0.0)
        assert total.mean() is None
        total.add({"w": torch.tensor([2.0])}, 3.0)
        total.add({"w": torch.tensor([float("nan")])}, 0)
        assert total.mean() == {"w": torch.tensor([2.0], dtype=torch.float64)}

    @pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
    def test_bad_weights_are_refused(self, weight: float) -> None:
        with pytest.raises(ValueError, match="a weight must be finite"):
            WeightedSum().add({"w": torch.ones(1)}, weight)
        with pytest.raises(ValueError, match="a weight must be finite"):
            HolderSum.like({"w": torch.ones(1)}).add({"w": torch.ones(1)}, {}, weight)

    def test_other_names_are_refused(self) -> None:
        one, other = WeightedSum(), WeightedSum()
        one.add({"w": torch.ones(1)}, 1.0)
        other.add({"w": torch.ones(1), "v": torch.ones(1)}, 1.0)
        with pytest.raises(ValueError, match="only some have w"):
            one.add({}, 1.0)
        with pytest.raises(ValueError, match="only some have v"):
            one.merge(other)

    def test_inputs_stay_and_need_no_gradient(self) -> None:
        parameter = torch.ones(2, requires_grad=True)
        total = WeightedSum()
        total.add({"w": parameter}, 2.0)
        total.add({"w": parameter}, 2.0)
        mean = total.mean()
        assert mean is not None
        assert not mean["w"].requires_grad
        assert torch.equal(parameter, torch.ones(2))


class TestHolderSum:
    @given(weights, seeds)
    def test_mean_is_over_holders_and_the_rest_stays_bit_for_bit(
        self, weights: list[float], seed: int
    ) -> None:
        old = draw(seed)
        total = HolderSum.like(old)
        sums = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        held = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        for i, weight in enumerate(weights):
            values, positions = draw(seed + 1 + i), draw_positions(seed + i)
            total.add(cut(values, positions), positions, weight)
            for name, shape in SHAPES.items():
                kept = [np.arange(n) for n in shape]
                for dim, ids in enumerate(positions[name]):
                    kept[dim] = kept[dim] if ids is None else ids.numpy()
                place = np.ix_(*kept)
                sums[name][place] += weight * numpy_of(values)[name][place]
                held[name][place] += weight
        mean = total.mean(old)
        for name in SHAPES:
            some = held[name] > 0
            result = mean[name].numpy()
            expected = (sums[name][some] / held[name][some]).astype(np.float32)
            np.testing.assert_allclose(result[some], expected, rtol=1e-6, atol=1e-7)
            assert result[~some].tobytes() == old[name].numpy()[~some].tobytes()
            assert mean[name].dtype == torch.float32

    @given(weights, seeds, st.integers(0, 6))
    def test_any_split_over_workers_gives_the_same(self, weights: list[float], seed: int, split: int) -> None:
        old = {name: tensor.double() for name, tensor in draw(seed).items()}
        whole, one, other = (HolderSum.like(old) for _ in range(3))
        for i, weight in enumerate(weights):
            positions = draw_positions(seed + i)
            part = cut(draw(seed + 1 + i), positions)
            whole.add(part, positions, weight)
            (one if i < split else other).add(part, positions, weight)
        one.merge(HolderSum.from_tensors(other.tensors()))
        close(one.mean(old), whole.mean(old))

    def test_held_whole_by_all_is_the_weighted_mean(self) -> None:
        holders, plain = HolderSum.like(draw(0)), WeightedSum()
        for seed, weight in ((1, 2.0), (2, 5.0)):
            holders.add(draw(seed), {}, weight)
            plain.add(draw(seed), weight)
        expected = plain.mean()
        assert expected is not None
        close(holders.mean({name: t.double() for name, t in draw(0).items()}), expected)

    def test_nobody_holds_anything(self) -> None:
        old = {"w": torch.tensor([float("nan"), -0.0, 1.5])}
        total = HolderSum.like(old)
        total.add({"w": torch.full((3,), float("nan"))}, {}, 0.0)
        assert total.mean(old)["w"].numpy().tobytes() == old["w"].numpy().tobytes()

    def test_a_part_of_another_shape_is_refused(self) -> None:
        total = HolderSum.like(draw(0))
        with pytest.raises(ValueError, match=r"b: a part of shape \(1,\) for \(2,\)"):
            total.add({"b": torch.ones(1)}, {"b": (torch.tensor([0, 2]),)})

    def test_inputs_stay_and_need_no_gradient(self) -> None:
        old = {"w": torch.ones(2, requires_grad=True)}
        total = HolderSum.like(old)
        total.add({"w": 3 * old["w"][:1]}, {"w": (torch.tensor([0]),)})
        assert torch.equal(total.mean(old)["w"], torch.tensor([3.0, 1.0]))
        assert not total.mean(old)["w"].requires_grad
        assert torch.equal(old["w"], torch.ones(2))
