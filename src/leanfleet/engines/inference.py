"""What is done with a trained network: evaluate it on any data, export it for inference."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from leanfleet.data import DataSet
from leanfleet.data import load as load_named
from leanfleet.engines.center import named
from leanfleet.engines.devices import recalibrated
from leanfleet.engines.federated import evaluate_on
from leanfleet.engines.job import AnyJob, GossipJob, SplitJob, make_job
from leanfleet.engines.local import default_workers
from leanfleet.engines.node_models import model_of, models
from leanfleet.engines.nodes import judge
from leanfleet.engines.personal import Whole, network_of, parse_who, stats_of
from leanfleet.engines.split import SplitCenter
from leanfleet.engines.staff import Staff, check_device
from leanfleet.errors import DataError, RecordError, UserError
from leanfleet.experiment import load
from leanfleet.runs import Checkpoint, Run
from leanfleet.storage import save_tensors, write_bytes


@dataclass(frozen=True)
class Evaluation:
    """What a trained network is worth.

    Attributes:
        data: Name of the data set.
        samples: Test samples.
        round: The rounds it was trained.
        accuracy: Evaluation A, a fraction: norms use each test batch's own statistics. Split methods: the mean over
            clients, each on test data like its own. Gossip: the mean over nodes, each with its own statistics.
        accuracy_recalibrated: Evaluation B: norms use the statistics of training images. None for split methods and
            gossip.
        loss: Mean cross entropy, evaluation A.
        loss_recalibrated: The same, evaluation B.
        accuracies: Of every client or node, for split and gossip methods; else None.
        who: Whose those are.
        numbers: Which client or node each is of; None as `accuracies` is.
    """

    data: str
    samples: int
    round: int
    accuracy: float
    accuracy_recalibrated: float | None
    loss: float
    loss_recalibrated: float | None
    accuracies: tuple[float, ...] | None = None
    who: str = "client"
    numbers: tuple[int, ...] | None = None


def evaluate(
    folder: Path,
    source: str | DataSet | None = None,
    *,
    image: str | None = None,
    label: str | None = None,
    data: DataSet | None = None,
    workers: int | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Evaluate the last checkpoint of a run on the test samples of any data that fit its network.

    Images are normalised, and evaluation B's statistics are taken, as in the run's own data: a network in use
    knows no other.

    Args:
        folder: The run's record.
        source: A data set, or what names one; the run's own if None.
        image: Column of the images of what is named, where it is not the usual one.
        label: Column of its labels, likewise.
        data: The run's own data, where it is not data that a file can name.
        workers: Worker processes; one a core if None.
        device: Where torch computes.

    Raises:
        RecordError: The record is missing, damaged or has no checkpoint yet.
        DataError: The data cannot be read or do not fit the network.
        UserError: Torch cannot compute there.
    """
    job, latest = _open(folder, data)
    if source is not None:
        if isinstance(source, str):
            own, seed = job.experiment.data, job.experiment.experiment.seed
            source = load_named(source, folder=own.folder, image=image, label=label, seed=seed)
        job = dataclasses.replace(job, data=_tested_on(job.data, source))
    if isinstance(job, GossipJob):
        check_device(device)
        return _of_nodes(job, latest, torch.device(device))
    count = workers or default_workers()
    with Staff(device) as staff:
        pool = staff.for_job(job, count)
        if isinstance(job, SplitJob):
            center = SplitCenter(job, count, device)
            center.restore(latest.tensors, latest.state["center"], pool)
            found = center.evaluate(pool)
            each = tuple(found["accuracies"])
            return Evaluation(
                job.data.name, len(job.data.test), latest.round, found["accuracy"], None, found["loss"], None, each,
                numbers=tuple(range(len(each))),
            )  # fmt: skip
        params = named(latest.tensors, "params/")
        (accuracy, loss), (accuracy_b, loss_b) = (
            evaluate_on(pool, params, recalibrate=recalibrate) for recalibrate in (False, True)
        )
    return Evaluation(job.data.name, len(job.data.test), latest.round, accuracy, accuracy_b, loss, loss_b)


def _of_nodes(job: GossipJob, latest: Checkpoint, device: torch.device) -> Evaluation:
    own = {i: {name: t.to(device) for name, t in model.items()} for i, model in models(job, latest).items()}
    judged = judge(job, own, device, job.method.on(device))
    samples = len(job.data.test)
    each = tuple(hits / samples for hits, _ in judged.values())
    loss = sum(loss for _, loss in judged.values()) / samples / len(judged)
    # The final rounds, and norms taken anew, are a line of their own beyond the rounds.
    rounds = latest.round - latest.state["closed"]
    return Evaluation(
        job.data.name, samples, rounds, sum(each) / len(each), None, loss, None, each, "node", tuple(judged)
    )


def trained(
    folder: Path, data: DataSet | None = None, client: str | None = None
) -> tuple[nn.Module, DataSet]:
    """Return a run's network as evaluation B has it, ready for inference, and the run's data.

    Args:
        folder: The run's record.
        data: The run's own data, where it is not data that a file can name.
        client: Whose network, for split methods: a number, or "new" for a client that has never been seen; for gossip:
            a number, or None for the mean of all nodes' models.

    Raises:
        RecordError: The record is missing, damaged or has no checkpoint yet.
        UserError: `client` is missing, names nobody, or there is one network for all.
    """
    job, latest = _open(folder, data)
    if isinstance(job, SplitJob):
        if client is None:
            last = job.devices - 1
            raise UserError(
                f"{folder}: every client has a network: say whose, --client 0 to {last}, or 'new'"
            )
        who = parse_who(client, job.devices)
        mean, std = stats_of(job, who)
        return network_of(job, latest, who), dataclasses.replace(job.data, mean=mean, std=std)
    if isinstance(job, GossipJob):
        net, model = copy.deepcopy(job.net), model_of(models(job, latest), client)
        with torch.no_grad():
            # Also those that a network does not save.
            for name, tensor in chain(net.named_parameters(), net.named_buffers()):
                tensor.copy_(model[name])
        return net.eval().requires_grad_(False), job.data
    if client is not None:
        raise UserError(f"{folder}: its network is the same for all; leave out --client")
    params = job.method.deployed(named(latest.tensors, "params/"))
    return recalibrated(job, params, torch.device("cpu")), job.data


def export(folder: Path, file: Path, data: DataSet | None = None, client: str | None = None) -> None:
    """Write a run's network with recalibrated norm statistics (evaluation B), for any batch size.

    The file's name says how: `.safetensors` (parameters and statistics by name), `.pt2` (an ExportedProgram for
    `torch.export.load`), `.ts` or `.torchscript` (for `torch.jit.load`). With it goes `leanfleet.json`, or metadata
    of that name: image shape, classes, and the mean and deviation by which images are normalised.

    Args:
        folder: The run's record.
        file: The file to write.
        data: The run's own data, where it is not data that a file can name.
        client: Whose network, see `trained`.

    Raises:
        UserError: The file's name says nothing, the network cannot be exported so, or see `trained`.
        RecordError: The record is missing, damaged or has no checkpoint yet.
        StorageError: The disk refuses.
    """
    if file.suffix not in _FORMATS:
        raise UserError(f"{file}: what to write? The name should end in {', '.join(_FORMATS)}")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}")
    net, data = trained(folder, data, client)
    # Two images: with one, exporters take the batch size for a constant.
    example = torch.zeros(2, *data.shape)
    about = {"shape": data.shape, "classes": data.classes, "mean": data.mean, "std": data.std}
    try:
        _FORMATS[file.suffix](file, net, example, {"leanfleet.json": json.dumps(about)})
    except RuntimeError as error:
        line = str(error).partition("\n")[0]
        raise UserError(f"{file}: this network cannot be exported so: {line}; try .safetensors") from error


def _safetensors(file: Path, net: nn.Module, example: Tensor, about: Mapping[str, str]) -> None:
    save_tensors(file, net.named_state() if isinstance(net, Whole) else net.state_dict(), about)


def _exported_program(file: Path, net: nn.Module, example: Tensor, about: Mapping[str, str]) -> None:
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(about))
    write_bytes(file, buffer.getvalue())


def _torchscript(file: Path, net: nn.Module, example: Tensor, about: Mapping[str, str]) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        # TorchScript is on its way out of PyTorch, but what runs on devices still reads it.
        warnings.simplefilter("ignore", DeprecationWarning)
        # A copy: tracing leaves its marks on a module.
        traced = torch.jit.trace(copy.deepcopy(net), example)  # type: ignore[no-untyped-call]
    write_bytes(file, traced.save_to_buffer(_extra_files=dict(about)))


_FORMATS: Mapping[str, Callable[[Path, nn.Module, Tensor, Mapping[str, str]], None]] = {
    ".safetensors": _safetensors,
    ".pt2": _exported_program,
    ".ts": _torchscript,
    ".torchscript": _torchscript,
}


def _open(folder: Path, data: DataSet | None) -> tuple[AnyJob, Checkpoint]:
    """Return a run's job and where it stands."""
    record = Run.open(folder)
    latest = record.latest()
    if latest is None:
        raise RecordError(f"{folder}: has no checkpoint yet: no round of it is done")
    if "ranks" in latest.state["center"]:
        raise RecordError(
            f"{folder}: was made by real processes, and each has its own node: nothing here to use"
        )
    return make_job(load(record.experiment_file), data), latest


def _tested_on(own: DataSet, other: DataSet) -> DataSet:
    """Return a run's data with the test samples of other data."""
    if other.shape != own.shape:
        shapes = ["x".join(map(str, data.shape)) for data in (other, own)]
        raise DataError(f"{other.name}: images of {shapes[0]}; the network was trained on {shapes[1]}")
    if len(other.classes) != len(own.classes):
        raise DataError(
            f"{other.name}: {len(other.classes)} classes; the network was trained on {len(own.classes)}"
        )
    # Writers of another set are others, whatever their numbers.
    writers = other.test.writers if other.name == own.name else None
    return dataclasses.replace(own, name=other.name, test=dataclasses.replace(other.test, writers=writers))
