from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from leanfleet.data import DataSet, load

FROM_OUTSIDE = os.environ.get("LEANFLEET_DATA")


@pytest.fixture(scope="session")
def real() -> Path:
    """Where the real sets lie."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(FROM_OUTSIDE) if FROM_OUTSIDE else beside
    if not folder.is_dir():
        pytest.skip(
            "no real data: set LEANFLEET_DATA to the folder that holds cifar10/train.parquet and others"
        )
    return folder


@pytest.fixture(scope="session")
def real_set(real: Path) -> Callable[[str], DataSet]:
    """Return a real set by name, decoded once for all tests."""

    @cache
    def read(name: str) -> DataSet:
        if not (real / name / "train.parquet").is_file():
            pytest.skip(f"no real data: there is no {real / name / 'train.parquet'}")
        return load(name, folder=real)

    return read
