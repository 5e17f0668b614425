from __future__ import annotations

from collections.abc import Callable

import pytest
from small_split_runs import VARIANTS, experiment

from leanfleet.engines.local import run
from leanfleet.runs import Run


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Return a finished run of a variant by one worker, which is done once."""
    done: dict[str, Run] = {}

    def get(variant: str) -> Run:
        if variant not in done:
            folder = tmp_path_factory.mktemp(variant)
            done[variant] = run(experiment(*VARIANTS[variant]), root=folder, workers=1)
        return done[variant]

    return get
