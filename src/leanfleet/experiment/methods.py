"""All methods of all families, by the names they have in an experiment file."""

from __future__ import annotations

from typing import Any, Final, Literal

from leanfleet import federated, split

Family = Literal["federated", "split"]

METHODS: Final[dict[str, type[federated.Method[Any, Any]] | type[split.SplitMethod[Any]]]] = {
    **federated.METHODS,
    **split.METHODS,
}
"""Every method by the name it has in an experiment file."""
