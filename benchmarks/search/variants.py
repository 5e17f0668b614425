"""The protocols that the study compares: those of the package, chance, and each cheaper way on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal, get_args

from leanfleet.search import FAST, PAPER, PROTOCOLS, Protocol

UNIFORM: Final = "uniform"
"""One rate for all layers: no search, and so no protocol."""

VARIANTS: Final[dict[str, Protocol]] = {
    **PROTOCOLS,
    "random": replace(PAPER, strategy="chance"),
    # One change to the paper's protocol each (our decisions).
    "loss": replace(PAPER, measure="loss"),
    "common": replace(PAPER, common=True),
    "surrogate": replace(PAPER, strategy="model", design=224, refits=(40, 40)),
    "held-out-1000": replace(PAPER, held_out=1000),
    "quarter-steps": replace(PAPER, steps=16),
    "one-seed": replace(PAPER, seeds=1),
    "early-rejection": replace(PAPER, screening=True),
    "seeded": replace(PAPER, seeded="typical"),
    "careful": replace(PAPER, seeded="careful"),
    "integer": replace(PAPER, integer=True),
    # And to the fast one.
    "fast-seeded": replace(FAST, seeded="typical"),
    "fast-careful": replace(FAST, seeded="careful"),
    "fast-integer": replace(FAST, integer=True),
    "fast-tied": replace(FAST, tied=True),
}

Size = Literal["steps", "batch_size", "held_out"]
"""A size of a short training."""

SIZES: Final[tuple[Size, ...]] = get_args(Size)

_FEWEST = {"population": 8, "generations": 1, "steps": 4, "batch_size": 8, "held_out": 50, "design": 12}
# Fewer vectors are not worth fitting a model anew.
_FEWEST_REFIT = 4


def scaled(protocol: Protocol, scale: float, sizes: Sequence[Size] = SIZES) -> Protocol:
    """Return a protocol whose population, generations and short trainings are so much smaller.

    The population stays a multiple of 4. What a model is fitted to shrinks with the square of `scale`, as the number
    of vectors does that an evolution trains: the ratio of both stays.

    Args:
        protocol: Of full size.
        scale: In (0, 1].
        sizes: What of a short training is.
    """
    if scale == 1.0:
        return protocol
    less = {
        "population": 4 * round(protocol.population * scale / 4),
        **{name: round(getattr(protocol, name) * scale) for name in ("generations", *sizes)},
        **({"design": round(protocol.design * scale**2)} if protocol.design else {}),
    }  # fmt: skip
    return replace(
        protocol,
        **{name: max(_FEWEST[name], value) for name, value in less.items()},
        refits=_refits(protocol.refits, scale**2) if protocol.refits else (),
    )


def _refits(full: tuple[int, ...], share: float) -> tuple[int, ...]:
    """Return how many vectors are trained before each fit: a share of all, in fewer fits where that is too few."""
    total = max(_FEWEST_REFIT, round(sum(full) * share))
    fits = max(1, min(len(full), total // _FEWEST_REFIT))
    return tuple(total // fits + (number < total % fits) for number in range(fits))
