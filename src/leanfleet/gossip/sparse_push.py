"""Sparse-Push and Skew-Compensated Sparse-Push (Aketi et al. 2021, arXiv 2102.05715)."""

from __future__ import annotations

from typing import Generic, TypeVar

from leanfleet.errors import ExperimentError
from leanfleet.gossip.method import Compressing, check_links, running_sums
from leanfleet.gossip.options import CompressionOptions, PushSumOptions, Rounds
from leanfleet.gossip.rules import ErrorMemory, Rule
from leanfleet.gossip.sums import RunningSums


class SparsePushOptions(PushSumOptions, CompressionOptions):
    """Sparse-Push's keys in `[method]`; defaults as in the author's run lines."""


class SCSPOptions(SparsePushOptions):
    """SCSP's keys in `[method]`; it has final rounds unless it is told otherwise."""

    final_rounds: Rounds = "auto"


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
