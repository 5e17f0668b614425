from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leanfleet.errors import StorageError
from leanfleet.fleet import Graph, build_graph
from leanfleet.report.graph import draw_graph

ONE_WAY, BOTH_WAYS = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def pixels(graph: Graph, folder: Path, name: str = "plot.png") -> np.ndarray:
    path = folder / name
    assert draw_graph(graph, path) == path
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(axis=-1).sum())


def test_links_one_way_and_both_ways_have_their_colours(tmp_path: Path) -> None:
    ring = pixels(build_graph("ring", 8), tmp_path)
    around = pixels(build_graph("undirected-ring", 8), tmp_path)
    assert count(ring, ONE_WAY) > 500
    assert count(ring, BOTH_WAYS) == count(around, ONE_WAY) == 0
    assert count(around, BOTH_WAYS) > 500
    mixed = pixels(Graph.from_edges("mixed", 3, [[(0, 1), (1, 0), (1, 2)]]), tmp_path)
    assert min(count(mixed, ONE_WAY), count(mixed, BOTH_WAYS)) > 200


def test_an_arrow_has_its_head_at_the_receiver(tmp_path: Path) -> None:
    # Node 0 is above node 1.
    down = pixels(Graph.from_edges("down", 2, [[(0, 1)]]), tmp_path)
    up = pixels(Graph.from_edges("down", 2, [[(1, 0)]]), tmp_path)
    for picture, sign in ((down, 1), (up, -1)):
        rows = (picture == ONE_WAY).all(axis=-1).sum(axis=1)
        used = np.flatnonzero(rows)
        middle = used.mean()
        assert sign * (rows[used[used > middle]].sum() - rows[used[used < middle]].sum()) > 50


@pytest.mark.parametrize(
    ("phases", "across", "down"), [(1, 1, 1), (2, 2, 1), (4, 4, 1), (6, 4, 2), (11, 4, 2)]
)
def test_there_is_a_panel_a_phase_and_at_most_eight(
    tmp_path: Path, phases: int, across: int, down: int
) -> None:
    graph = build_graph(", ".join(["ring"] * phases), 5)
    height, width, _ = pixels(graph, tmp_path).shape
    inches = 3.2 * (1 if phases > 1 else 1.6)
    assert (width, height) == pytest.approx((150 * inches * across, 150 * (inches * down + 0.7)), abs=1)


def test_phases_are_drawn_where_they_stand(tmp_path: Path) -> None:
    links = [[(0, 1), (1, 2), (2, 0)], []]
    picture = pixels(Graph.from_edges("half", 3, links), tmp_path)
    half = picture.shape[1] // 2
    assert count(picture[:, :half], ONE_WAY) > 200
    assert count(picture[:, half:], ONE_WAY) == 0


def test_large_fleets_are_drawn_as_a_matrix(tmp_path: Path) -> None:
    sparse = pixels(build_graph("ring", 300), tmp_path)
    dense = pixels(build_graph("random(0.1)", 300), tmp_path)
    assert count(sparse, ONE_WAY) == 0
    blue = [np.argwhere((p[..., 2] - p[..., 0]) > 80) for p in (sparse, dense)]
    assert 500 < len(blue[0]) < len(blue[1])
    # Receivers go down and senders along: the ring is the diagonal from the left above, but for its last link.
    correlation = np.corrcoef(blue[0].T)[0, 1]
    assert correlation > 0.95


@pytest.mark.parametrize(
    ("spec", "nodes"), [("ring", 2), ("random(3)", 14), ("complete", 32), ("torus(4x5)", 20)]
)
def test_all_sizes_of_nodes_can_be_drawn(tmp_path: Path, spec: str, nodes: int) -> None:
    picture = pixels(build_graph(spec, nodes), tmp_path)
    assert count(picture, (0xFF, 0xFF, 0xFF)) < picture.size / 3


def test_the_same_graph_gives_the_same_picture(tmp_path: Path) -> None:
    graph = build_graph("random(2)", 9)
    draw_graph(graph, tmp_path / "one.png")
    draw_graph(graph, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no/plot\.png: cannot be written"):
        draw_graph(build_graph("ring", 3), tmp_path / "no" / "plot.png")
