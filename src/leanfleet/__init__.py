"""leanfleet: train one PyTorch network over a fleet of devices that differ in what they can spend.

```python
import leanfleet

if __name__ == "__main__":  # worker processes import this file, too
    experiment = leanfleet.load("examples/distreal-digits.toml")
    run = leanfleet.run(experiment)
    print(run.summary())
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanfleet.data import DataSet as DataSet
    from leanfleet.data import load as load_data
    from leanfleet.engines.compare import compare, resume_comparison, variants
    from leanfleet.engines.inference import evaluate, export
    from leanfleet.engines.local import Progress, merge, resume, run
    from leanfleet.experiment import Experiment, dumps, load, loads, override
    from leanfleet.runs import Run
    from leanfleet.subnet import SubnetPlan
    from leanfleet.subnet.lut import Lut

_HOMES = {
    "DataSet": "data",
    "Experiment": "experiment",
    "Lut": "subnet.lut",
    "Progress": "engines.local",
    "Run": "runs",
    "SubnetPlan": "subnet",
    "compare": "engines.compare",
    "dumps": "experiment",
    "evaluate": "engines.inference",
    "export": "engines.inference",
    "load": "experiment",
    "load_data": "data",
    "loads": "experiment",
    "merge": "engines.local",
    "override": "experiment",
    "resume": "engines.local",
    "resume_comparison": "engines.compare",
    "run": "engines.local",
    "variants": "engines.compare",
}

__all__ = [
    "DataSet", "Experiment", "Lut", "Progress", "Run", "SubnetPlan", "compare", "dumps", "evaluate", "export", "load",
    "load_data", "loads", "merge", "override", "resume", "resume_comparison", "run", "variants",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # On demand: `leanfleet --help` answers at once, and a device that only runs subnets loads nothing else.
    if name not in _HOMES:
        raise AttributeError(f"module 'leanfleet' has no attribute '{name}'")
    home = import_module(f"leanfleet.{_HOMES[name]}")
    return getattr(home, {"load_data": "load"}.get(name, name))


def __dir__() -> list[str]:
    return __all__
