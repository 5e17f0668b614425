"""Worker processes: on which device they may compute."""

from __future__ import annotations

import pytest

from leanfleet.engines.staff import Staff, check_device
from leanfleet.errors import UserError


@pytest.mark.parametrize("name", ["quantum", "cuda:99", "meta:x"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    check_device("cpu")
    with pytest.raises(UserError, match=f"--device {name}: torch cannot compute there"):
        check_device(name)
    with pytest.raises(UserError, match=name):
        Staff(name)
