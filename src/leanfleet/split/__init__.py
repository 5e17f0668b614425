"""Split learning: the client holds the first layers, a server the others; activations go up at every step."""

from typing import Any

from leanfleet.split.adasplit import AdaSplit
from leanfleet.split.cut import Cut, Place, cut, places
from leanfleet.split.method import Setting, SplitMethod, SplitOptions
from leanfleet.split.sl_basic import SLBasic
from leanfleet.split.splitfed import SplitFed

METHODS: dict[str, type[SplitMethod[Any]]] = {method.name: method for method in (AdaSplit, SLBasic, SplitFed)}
"""Every method by the name it has in an experiment file."""

__all__ = [
    "METHODS", "AdaSplit", "Cut", "Place", "SLBasic", "Setting", "SplitFed", "SplitMethod", "SplitOptions", "cut",
    "places",
]  # fmt: skip
