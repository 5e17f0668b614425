from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanfleet.errors import StorageError
from leanfleet.nets import build
from leanfleet.report.front import draw_front
from leanfleet.subnet import SubnetPlan
from leanfleet.subnet.lut import Lut, Row

SEARCHED, UNIFORM = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def table(**about):
    plan = SubnetPlan.trace(build("digits-cnn-small"), torch.zeros(1, 1, 8, 8))
    rows = [Row(tuple(plan.uniform(rate)), 0.0, f2, 0.1) for rate, f2 in ((0.5, 1.0), (0.2, 0.3), (0.0, 0.0))]
    return Lut.costed(plan, rows, "search (fast, digits)", about)


def colours_in(path: Path) -> dict[tuple[int, int, int], int]:
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {(int(r), int(g), int(b)): int(n) for (r, g, b), n in zip(found, counts, strict=True)}


FRONT = [[0.0, 1.0, 0.1], [0.6, 0.3, 0.05], [1.0, 0.0, 0.0]]


def test_the_front_and_the_line_are_drawn(tmp_path: Path) -> None:
    line = [[0.0, 1.0, 0.1], [1.0, 0.0, 0.0]]
    both = table(front=FRONT, uniform=line, network="net", cost="seconds", measure="loss", fresh_seeds=10)
    found = colours_in(draw_front(both, tmp_path / "both.png"))
    alone = colours_in(draw_front(table(front=FRONT), tmp_path / "alone.png"))
    assert min(found[SEARCHED], found[UNIFORM]) > 200
    assert UNIFORM not in alone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.png", "both.png"]


def test_the_order_of_the_points_does_not_matter(tmp_path: Path) -> None:
    one, two = (draw_front(table(front=f), tmp_path / f"{len(f)}{f[0][0]}.png") for f in (FRONT, FRONT[::-1]))
    assert one.read_bytes() == two.read_bytes()


def test_where_nothing_was_measured_nothing_is_drawn(tmp_path: Path) -> None:
    assert draw_front(table(), tmp_path / "plot.png") is None
    assert not list(tmp_path.iterdir())


def test_where_nothing_was_found_no_front_is_drawn(tmp_path: Path) -> None:
    uniform = replace(table(front=FRONT, uniform=FRONT), origin="uniform")
    found = colours_in(draw_front(uniform, tmp_path / "plot.png"))
    assert SEARCHED not in found
    assert found[UNIFORM] > 200


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no/plot\.png: cannot be written"):
        draw_front(table(front=FRONT), tmp_path / "no" / "plot.png")
