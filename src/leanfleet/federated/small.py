"""The small network: FedAvg on one that the weakest device can (almost) train in time (Rapp et al. 2022)."""

from __future__ import annotations

from leanfleet.errors import ExperimentError
from leanfleet.federated.fedavg import WholeNetwork
from leanfleet.nets import NETWORKS
from leanfleet.options import Options


class SmallOptions(Options):
    """The small network's keys in `[method]`.

    Attributes:
        network: Which network; by default the small one that belongs to the experiment's.
        keep: Layers of a network of the user's own that are never dropped (none is; what cannot be cut goes here).
    """

    network: str | None = None
    keep: tuple[str, ...] = ()


class Small(WholeNetwork[SmallOptions]):
    """FedAvg on a smaller network on all devices.

    Exempt from the deadline (our decision: the paper's own small networks take slightly more than the weakest
    device has); a round then lasts until its last device is done.
    """

    name = "small"
    Options = SmallOptions
    deadline = False

    @classmethod
    def network(cls, reference: str, options: SmallOptions) -> str:
        """Return the small network that belongs to the experiment's.

        Raises:
            ExperimentError: None is known and none is named.
        """
        small = options.network or (NETWORKS[reference].small if reference in NETWORKS else None)
        if small is None:
            raise ExperimentError(
                f"[method] network: name the small network, none is known for '{reference}'"
            )
        return small
