"""Sparse-Push and Skew-Compensated Sparse-Push (Aketi et al. 2021, arXiv 2102.05715)."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import Field

from leanfleet.errors import ExperimentError
from leanfleet.fleet import final_rounds
from leanfleet.gossip.method import (
    Compressing,
    CompressionOptions,
    PushSumOptions,
    check_links,
    running_sums,
)
from leanfleet.gossip.node import Node
from leanfleet.gossip.rules import ErrorMemory, Rule
from leanfleet.gossip.sums import RunningSums

_MANY_ROUNDS = 500


class SparsePushOptions(PushSumOptions, CompressionOptions):
    """Sparse-Push's keys in `[method]`; defaults as in the author's run lines."""


class SCSPOptions(SparsePushOptions):
    """SCSP's keys in `[method]`.

    Attributes:
        final_rounds: Dense exchanges at the end, R; None takes as many as it needs to bring disagreement down to
            `tolerance`. The author's script has 50.
        tolerance: Share of the disagreement that may be left.
        reset_weights: Whether the final rounds begin with w = 1, as when a checkpoint of z alone is loaded.
    """

    final_rounds: int | None = Field(None, ge=0)
    tolerance: float = Field(1e-3, gt=0, lt=1)
    reset_weights: bool = False


O = TypeVar("O", bound=SparsePushOptions)  # noqa: E741


class _SparsePush(Compressing[O], Generic[O]):
    def check(self) -> None:
        """See `GossipMethod.check`."""
        super().check()
        check_links(self, self.options)
        if self.running_sums() is not None and self.options.values != "exact":
            raise ExperimentError(
                f'[method] values = "{self.options.values}": running sums are whole counters; leave values out, or '
                "set running_sums = false"
            )

    def rule(self) -> Rule:
        """See `GossipMethod.rule`."""
        return ErrorMemory(self.training.layout, self.options.build(), self.eta)

    def running_sums(self) -> RunningSums | None:
        """See `GossipMethod.running_sums`."""
        return running_sums(self, self.options)


class SparsePush(_SparsePush[SparsePushOptions]):
    """Push-sum of compressed models with error memory, over links that may be one-way and come and go.

    The step is that of the author's code; that it is what the paper calls Sparse-Push is a reconstruction.

        x <- x - lr SGD(g(z));  c = C(x + e);  e <- x + e - c
        x_i <- x_i + eta (sum p_ij c_j - (1 - p_ii) c_i);  w likewise, uncompressed;  z = x / w
    """

    name = "sparse-push"
    Options = SparsePushOptions


class SCSP(_SparsePush[SCSPOptions]):
    """Sparse-Push, and dense exchanges without training at the end, which remove the floor of disagreement.

    A reconstruction: the error memory is dropped, x and w stay, and R rounds of x <- P x, w <- P w follow.
    """

    name = "scsp"
    Options = SCSPOptions

    def final_rounds(self) -> int:
        """See `GossipMethod.final_rounds`."""
        if self.options.final_rounds is not None:
            return self.options.final_rounds
        setting = self.setting
        return final_rounds(self.lasting, self.options.tolerance, setting.loss_rate, setting.late_rate)

    def begin_final(self, node: Node) -> None:
        """See `GossipMethod.begin_final`."""
        node.merge(self.options.reset_weights)

    def warnings(self) -> list[str]:
        """See `GossipMethod.warnings`."""
        found, rounds = super().warnings(), self.final_rounds()
        if rounds > _MANY_ROUNDS:
            found.append(
                f"{self.name}: graph '{self.setting.graph.name}' needs {rounds} dense final rounds; take one that "
                "mixes faster, such as exponential"
            )
        return found
