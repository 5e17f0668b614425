from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from leanfleet.errors import StorageError
from leanfleet.report import draw_ranking, group, rank, read

Make = Callable[..., Path]
Drawn = Callable[..., Figure]


def facts(accuracy: float | None, bytes: float, macs: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "bytes_up": bytes, "bytes_down": 0, "macs_total": 3 * macs}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Draw a ranking of records and return the figure, as it was saved."""
    figures: list[Figure] = []
    saved = matplotlib.figure.Figure.savefig

    def keep(figure: Figure, *args: Any, **how: Any) -> None:
        figures.append(figure)
        saved(figure, *args, **how)

    def draw(*folders: Path, **how: Any) -> Figure:
        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
        groups = group(read(folders))
        file = draw_ranking(rank(groups, **how), groups, tmp_path / "plots")
        assert file == tmp_path / "plots" / "score.png"
        assert file.read_bytes().startswith(b"\x89PNG")
        return figures[-1]

    return draw


def circles(figure: Figure) -> list[tuple[float, float, float]]:
    """Return place, height and area of each circle, the largest first."""
    found = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    return [(*np.asarray(c.get_offsets())[0].tolist(), float(c.get_sizes()[0])) for c in found]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_areas_follow_macs_and_places_follow_bytes(make: Make, drawn: Drawn) -> None:
    figure = drawn(
        make("adasplit", facts=facts(0.5, 1e6, 1e9)),
        make("fedavg", facts=facts(0.9, 1e9, 4e9)),
    )
    (many, top, large), (few, low, small) = circles(figure)
    assert (many, few) == (1e9, 1e6)
    assert (top, low) == pytest.approx((90, 50))
    assert large == pytest.approx(4 * small)
    assert figure.axes[0].get_xscale() == "log"


def test_the_foot_says_under_which_terms_and_the_legend_what_sizes_are(make: Make, drawn: Drawn) -> None:
    figure = drawn(make(facts=facts(0.9, 2e6, 3e9)), bytes_max=1e6, temperature=4.0, byte_mode="authors")
    foot = figure.get_supxlabel()
    for term in (
        "T = 4",
        "bytes_max = 1 MB (given)",
        "macs_max = 3 GMACs (the most here: distreal)",
        "bytes: authors",
    ):
        assert term in foot
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "client MACs\n(forward)"
    assert [text.get_text() for text in legend.get_texts()] == ["2 G", "500 M", "100 M"]
    assert labels(figure)[0].endswith(" !)")


def test_no_label_covers_another_or_a_circle(make: Make, drawn: Drawn) -> None:
    folders = [
        make(
            "adasplit", name=f"quite-a-long-name-{n}", extra=f"gamma = 0.{n}1", facts=facts(0.9, 1e6 + n, 1e9)
        )
        for n in range(8)
    ]
    figure = drawn(*folders)
    # Of the annotations this would take in the lines to their circles.
    alone = [matplotlib.text.Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert len(alone) == 8
    middle = figure.axes[0].transData.transform(circles(figure)[0][:2])
    assert not any(a.overlaps(b) for n, a in enumerate(alone) for b in alone[:n])
    assert not any(box.contains(*middle) for box in alone)
    inside = figure.axes[0].bbox
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in alone)


def test_whoever_sent_nothing_stands_at_the_edge_and_says_so(make: Make, drawn: Drawn) -> None:
    figure = drawn(make("adasplit", facts=facts(0.5, 0, 1e9)), make("fedavg", facts=facts(0.9, 1e6, 1e9)))
    places = {x for x, _, _ in circles(figure)}
    assert places == {1e5, 1e6}
    assert any("adasplit" in label and "0 B" in label for label in labels(figure))


def test_a_group_without_a_score_is_not_drawn(make: Make, drawn: Drawn) -> None:
    assert labels(drawn(make(rounds=0, finished=False))) == []
    both = drawn(make(rounds=0, finished=False), make("fedavg", facts=facts(0.9, 1e6, 1e9)))
    assert [label.split()[0] for label in labels(both)] == ["fedavg"]


def test_a_folder_that_cannot_be_made_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    groups = group(read([make()]))
    with pytest.raises(StorageError, match="file/plots: cannot be written"):
        draw_ranking(rank(groups), groups, tmp_path / "file" / "plots")
