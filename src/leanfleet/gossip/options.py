"""What `[method]` of the gossip family may say."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from leanfleet.gossip.sums import Repair
from leanfleet.options import Options
from leanfleet.wire import Compressor, Identity, Qsgd, RandomK, Sign, TopK, Values

LARGE_ETA: Final = 2.0
"""From this multiple of its default on, nodes hardly agree with a consensus step, or diverge."""
_REFUSED_ETA = 10.0

Rounds = Annotated[int, Field(ge=0)] | Literal["auto"]


class GossipOptions(Options):
    """The keys in `[method]` that all gossip methods have.

    Attributes:
        exchange_every: Training steps from one exchange to the next.
        graph_period: For how many exchanges each graph of a sequence is kept; None is about 1 / eta, so that
            error memory comes through, and 1 without compression or where links are recorded (our decision).
        quasi_global: Whether momentum follows the moves of whole steps, mixing included (Lin et al. 2021).
        final_rounds: Dense exchanges without training at the end, R, in which nodes come to agree. "auto" takes as
            many as bring disagreement down to `tolerance`; the author's script of Sparse-Push has 50.
        tolerance: Share of the disagreement that may be left, for "auto".
        reset_weights: Whether the final rounds begin with w = 1, as when a checkpoint of z alone is loaded.
    """

    exchange_every: int = Field(1, ge=1)
    graph_period: int | None = Field(None, ge=1)
    quasi_global: bool = False
    final_rounds: Rounds = 0
    tolerance: float = Field(1e-3, gt=0, lt=1)
    reset_weights: bool = False

    @model_validator(mode="after")
    def _moves_fit(self) -> Self:
        if self.quasi_global and self.exchange_every > 1:
            raise ValueError("quasi_global: goes with exchange_every = 1 only")
        return self


class PushSumOptions(GossipOptions):
    """What methods with push-sum weights can do against lost messages.

    Attributes:
        running_sums: Whether links keep running sums, so that nothing is lost for good; None where links lose
            messages. Without them lost messages take weight with them.
        repair: What messages repeat of what may not have arrived. "ack" needs links both ways.
        lease: After how many messages without any answer a sender takes back what it sent, and sends no more
            until it hears again; None trusts for ever. Needs links both ways, too: answers come with messages.
    """

    running_sums: bool | None = None
    repair: Repair = "none"
    lease: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _sums_fit(self) -> Self:
        if self.running_sums is False and (self.repair != "none" or self.lease is not None):
            raise ValueError("running_sums = false: does not go with repair or lease")
        return self


class CompressionOptions(GossipOptions):
    """How much is sent, and how far a node moves for it.

    Attributes:
        compressor: What of every tensor is sent.
        density: Share of coordinates, for top-k and random-k.
        bits: Of a magnitude, for qsgd.
        values: How values travel; what rounding takes off goes into the error memory.
        eta: Consensus step; None is the density, as in the author's runs, or 1 without compression.
        force_eta: Whether to run with an eta of ten times the density and more, which diverges.
    """

    compressor: Literal["top-k", "random-k", "qsgd", "sign", "none"] = "top-k"
    density: float = Field(0.01, gt=0, le=1)
    bits: int = Field(4, ge=1, le=15)
    values: Values = "exact"
    eta: float | None = Field(None, gt=0, le=1)
    force_eta: bool = False

    @model_validator(mode="after")
    def _eta_fits(self) -> Self:
        if self.natural_eta is None and self.eta is None:
            raise ValueError(f'eta: compressor = "{self.compressor}" needs one; begin with a small one')
        if self.compressor in ("qsgd", "sign") and self.values != "exact":
            raise ValueError(f'values: do not go with compressor = "{self.compressor}"')
        if self.eta_ratio >= _REFUSED_ETA and not self.force_eta:
            raise ValueError(
                f"eta = {self.eta:g}: {self.eta_ratio:g} times the density of {self.density:g} diverges, if late; "
                "lower it, or set force_eta = true"
            )
        return self

    @property
    def natural_eta(self) -> float | None:
        """The density: a coordinate that is sent once in 1 / density steps brings 1 / density times as much."""
        if self.compressor in ("top-k", "random-k"):
            return self.density
        return 1.0 if self.compressor == "none" else None

    @property
    def consensus_step(self) -> float:
        """The consensus step that is taken."""
        eta = self.natural_eta if self.eta is None else self.eta
        assert eta is not None
        return eta

    @property
    def eta_ratio(self) -> float:
        """The consensus step as a multiple of its default; 1 where there is none."""
        return self.consensus_step / self.natural_eta if self.natural_eta else 1.0

    def build(self) -> Compressor:
        """Return the compressor."""
        if self.compressor == "none" or (self.compressor == "top-k" and self.density == 1):
            return Identity(self.values)
        match self.compressor:
            case "top-k":
                return TopK(self.density, self.values)
            case "random-k":
                return RandomK(self.density, self.values)
            case "qsgd":
                return Qsgd(self.bits, biased=True)
            case _:
                return Sign()
