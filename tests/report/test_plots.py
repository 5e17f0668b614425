from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leanfleet.errors import StorageError
from leanfleet.experiment import METHODS
from leanfleet.report import draw, group, read
from leanfleet.report.plots import band, colours

Make = Callable[..., Path]

FILES = ["accuracy-rounds.png", "accuracy-time.png", "accuracy-macs.png"]


def colours_in(path: Path) -> set[tuple[int, int, int]]:
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {(int(r), int(g), int(b)) for (r, g, b), n in zip(found, counts, strict=True) if n > 20}


def test_every_method_is_drawn_in_its_colour(make: Make, tmp_path: Path) -> None:
    folders = [make(method, s, top=0.5 + 0.1 * i) for i, method in enumerate(METHODS) for s in (0, 1)]
    files = draw(group(read(folders)), tmp_path / "plots")
    assert [file.name for file in files] == FILES
    lines = {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0xCC, 0x79, 0xA7)}
    assert all(lines <= colours_in(file) for file in files)
    # Written whole or not at all: nothing is left beside them.
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(FILES)


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_run_with_hardly_a_point_is_drawn_too(make: Make, tmp_path: Path, rounds: int) -> None:
    for file in draw(group(read([make(rounds=rounds, finished=False)])), tmp_path):
        image = Image.open(file)
        without_legend = tmp_path / "axes.png"
        image.crop((0, int(0.3 * image.height), image.width, image.height)).save(without_legend)
        assert ((0x00, 0x72, 0xB2) in colours_in(without_legend)) == bool(rounds)


def test_a_band_holds_all_runs_at_the_rounds_they_share(make: Make) -> None:
    folders = [make(seed=s, top=top, rounds=r) for s, (top, r) in enumerate(((0.6, 8), (0.9, 6), (0.8, 8)))]
    (together,) = group(read(folders))
    found = band(together, "macs_total")
    curves = np.array([record.curve("round")[1][:6] for record in together.records])
    assert found.x.tolist() == [1e9 * n for n in range(1, 7)]
    assert found.low.tolist() == curves[0].tolist()
    assert found.high.tolist() == curves[1].tolist()
    np.testing.assert_allclose(found.mean, curves.mean(axis=0))


def test_a_method_keeps_its_colour_whoever_else_is_there(make: Make) -> None:
    distreal, fedavg, small = (group(read([make(m)]))[0] for m in ("distreal", "fedavg", "small"))
    alone = {g.method: colours([g])[0] for g in (distreal, fedavg, small)}
    for together in ([small, distreal], [fedavg, small, distreal]):
        assert colours(together) == [alone[g.method] for g in together]
    assert len(set(colours([distreal, distreal, small, distreal]))) == 4


def test_groups_have_colours_of_their_own(make: Make) -> None:
    groups = [group(read([make(m)]))[0] for m in METHODS]
    assert sorted(colours([groups[0]] * 12)) == list(range(12))
    many = colours(groups + [groups[0]] * 12)
    assert len(set(many)) == len(many)
    assert many[: len(groups)] == [colours([g])[0] for g in groups]


def test_a_title_stands_in_front(make: Make, tmp_path: Path) -> None:
    groups = group(read([make()]))
    with_title, without = (draw(groups, tmp_path / name, name)[0] for name in ("scenario", ""))
    assert with_title.read_bytes() != without.read_bytes()


def test_a_folder_that_cannot_be_made_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/plots: cannot be written"):
        draw(group(read([make()])), tmp_path / "file" / "plots")
