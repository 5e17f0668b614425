from collections.abc import Callable
from pathlib import Path

from leanfleet.report import group, read, sentence, summarise

Make = Callable[..., Path]


def said(folders: list[Path]) -> str:
    return sentence(summarise(group(read(folders))))


def test_more_and_fewer_points_follow_the_numbers(make: Make) -> None:
    text = said([make("distreal", top=0.8), make("small", top=0.7), make("federated-dropout", top=0.9)])
    early, late = text.split("; after ")
    assert early.startswith("After 5 s of virtual time distreal classifies ")
    assert late.startswith("20 s of virtual time distreal classifies 73.4 % of the test images correctly, ")
    assert "9.2 points more than small" in text
    assert "9.2 points fewer than federated-dropout" in text
    assert ". " not in text
    assert text.endswith(".")


def test_a_difference_within_the_noise_is_not_called_one(make: Make) -> None:
    noisy = [make("distreal", s, top=t) for s, t in enumerate((0.7, 0.8))]
    other = [make("small", s, top=t) for s, t in enumerate((0.74, 0.8))]
    assert "no clear difference to small" in said(noisy + other)


def test_the_bound_is_shown_with_what_it_spends(make: Make) -> None:
    text = said([make("distreal", rounds=20), make("fedavg", rounds=40)])
    assert "fedavg (which spends 2 times the MACs)" in text


def test_one_method_alone(make: Make) -> None:
    assert said([make("distreal", top=0.5)]).endswith("of the test images correctly.")
