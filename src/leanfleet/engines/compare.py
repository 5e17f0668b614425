"""Several experiments one after the other, kept together in one folder: methods times seeds.

```
runs/NAME/
  comparison.json     all experiments of the comparison, by the names of their records; written before the first run
  METHOD-sSEED/ ...   a record each
```

An interrupted comparison is resumed by its folder alone: what is finished stays, what was begun goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leanfleet.engines.job import make_job
from leanfleet.engines.local import Watch, default_workers, resume, run
from leanfleet.engines.staff import Staff, check_device
from leanfleet.errors import ExperimentError, RecordError, did_you_mean
from leanfleet.experiment import METHODS, Experiment, dumps, loads, override
from leanfleet.runs import Run, clear_unborn, new_folder
from leanfleet.storage import write_json

FILE = "comparison.json"


@dataclass(frozen=True)
class Plan:
    """What a comparison consists of.

    Attributes:
        experiments: By the names of their records, in order.
        workers: Worker processes of each run.
        device: Where torch computes.
    """

    experiments: Mapping[str, Experiment]
    workers: int
    device: str


def variants(
    experiments: Sequence[Experiment], methods: Sequence[str] = (), seeds: int = 1
) -> list[Experiment]:
    """Return every experiment with every method and seed, each under a name of its own.

    Options of a method hold for the method that the experiment names; other methods take their defaults. Names are
    `METHOD-sSEED`, with the experiment's name in front where there are several.

    Args:
        experiments: What to vary.
        methods: Names of methods; each experiment's own if empty.
        seeds: How many seeds, counted from the experiment's own.

    Raises:
        ExperimentError: A method is unknown, or two variants would have one name.
    """
    unknown = next((method for method in methods if method not in METHODS), None)
    if unknown is not None:
        raise ExperimentError(f"method '{unknown}' is unknown{did_you_mean(unknown, METHODS)}")
    found = [
        _variant(experiment, method, experiment.experiment.seed + shift, prefix=len(experiments) > 1)
        for experiment in experiments
        for method in methods or [experiment.method.name]
        for shift in range(seeds)
    ]
    names = [experiment.experiment.name for experiment in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ExperimentError(
            f"two runs would be called {twice}: name each method once, and give each file another [experiment] name"
        )
    return found


def compare(
    experiments: Sequence[Experiment],
    *,
    root: Path = Path("runs"),
    name: str = "comparison",
    workers: int | None = None,
    device: str = "cpu",
    watch: Watch = lambda progress: None,
) -> list[Run]:
    """Run experiments one after the other and return their records, in the same order.

    Args:
        experiments: What to run, see `variants`; their names must differ.
        root: Folder of all records.
        name: The comparison's folder in `root`; a number is appended if it exists.
        workers: Worker processes; one a core if None.
        device: Where torch computes, "cpu" or "cuda".
        watch: Is told about progress of the present run.

    Raises:
        UserError: An experiment cannot be run as it is.
        WorkerError: A worker died; the comparison can be resumed.
        StorageError: The disk refused; the comparison can be resumed.
    """
    folder = begin(experiments, root=root, name=name, workers=workers, device=device)
    return resume_comparison(folder, watch=watch)


def begin(
    experiments: Sequence[Experiment],
    *,
    root: Path,
    name: str,
    workers: int | None = None,
    device: str = "cpu",
) -> Path:
    """Write down what is to be compared; return the folder, ready for `resume_comparison`.

    Raises:
        UserError: An experiment cannot be run as it is; better said now than after the first hours.
        StorageError: The disk refuses.
    """
    check_device(device)
    nameless = {dumps(override(e, ["experiment.name=x", "experiment.seed=0"])): e for e in experiments}
    for experiment in nameless.values():
        make_job(experiment)
    folder = new_folder(root, name)
    texts = {e.experiment.name: dumps(e) for e in experiments}
    plan = {"workers": workers or default_workers(), "device": device, "experiments": texts}
    write_json(folder / FILE, plan)
    return folder


def resume_comparison(
    folder: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    watch: Watch = lambda progress: None,
) -> list[Run]:
    """Go on with a comparison and return its records: finished ones as they are.

    Args:
        folder: The comparison.
        workers: As many as before if None, so that the result is the same bit for bit.
        device: Where torch computes; where it did before if None.
        watch: Is told about progress of the present run.

    Raises:
        RecordError: There is no comparison, or it or a record of it is damaged or in use.
    """
    plan = planned(folder)
    records = []
    with Staff(device or plan.device) as staff:
        for name, experiment in plan.experiments.items():
            if (folder / name / "experiment.toml").is_file():
                begun = (folder / name / "state.json").is_file()
                count = workers or (None if begun else plan.workers)
                records.append(resume(folder / name, workers=count, watch=watch, staff=staff))
            else:
                clear_unborn(folder / name)
                count = workers or plan.workers
                records.append(run(experiment, root=folder, workers=count, watch=watch, staff=staff))
    return records


def is_comparison(folder: Path) -> bool:
    """Return whether a folder holds a comparison, not a single run."""
    return (folder / FILE).is_file()


def is_finished(folder: Path) -> bool:
    """Return whether every run of a comparison came to its end."""
    return all(Run(folder / name).finished for name in planned(folder).experiments)


def planned(folder: Path) -> Plan:
    """Return what a comparison consists of.

    Raises:
        RecordError: There is none in that folder, or it is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [loads(text) for text in content["experiments"].values()]
        experiments = {e.experiment.name: e for e in found}
        return Plan(experiments, int(content["workers"]), str(content.get("device", "cpu")))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, ExperimentError) as error:
        raise RecordError(f"{path}: damaged: {type(error).__name__}: {error}") from error


def _variant(experiment: Experiment, method: str, seed: int, *, prefix: bool) -> Experiment:
    name = f"{experiment.experiment.name}-{method}-s{seed}" if prefix else f"{method}-s{seed}"
    # The method first: it decides whether the name below is one that a folder can have.
    chosen = override(experiment, [f"method.name={method}"])
    return override(chosen, [f"experiment.name={name}", f"experiment.seed={seed}"])
