"""The names that `import leanfleet` offers."""

import subprocess
import sys

import pytest

import leanfleet


def test_every_public_name_is_there() -> None:
    assert dir(leanfleet) == leanfleet.__all__ == sorted(leanfleet.__all__, key=lambda n: (n.islower(), n))
    for name in leanfleet.__all__:
        assert callable(getattr(leanfleet, name))
    from leanfleet.data import load
    from leanfleet.engines.local import run

    assert leanfleet.run is run
    assert leanfleet.load_data is load


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fedavg'"):
        leanfleet.fedavg  # noqa: B018


@pytest.mark.parametrize("module", ["leanfleet", "leanfleet.cli"])
def test_nothing_heavy_is_imported_before_it_is_needed(module: str) -> None:
    heavy = "{'torch', 'pydantic', 'numpy', 'matplotlib', 'datasets', 'sklearn'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
