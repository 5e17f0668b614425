from __future__ import annotations

import io
import json
import shutil
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from leanfleet.data import DataSet, Split, eval_batches, load
from leanfleet.engines.inference import evaluate, export, trained
from leanfleet.engines.local import run
from leanfleet.errors import DataError, RecordError, UserError
from leanfleet.experiment import loads
from leanfleet.nets import build
from leanfleet.runs import Run

TINY = """
[experiment]
rounds = 2
[network]
name = "digits-cnn-small"
[fleet]
devices = 4
per_round = 2
[training]
batch_size = 32
"""


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(loads(TINY), root=tmp_path_factory.mktemp("runs"), workers=1)


@pytest.fixture(scope="module")
def net(record: Run) -> nn.Module:
    return trained(record.folder)[0]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def output(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = net(x)
    return found


def test_evaluation_repeats_what_the_summary_says(record: Run) -> None:
    found, summary = evaluate(record.folder, workers=1), record.summary()
    assert summary is not None
    assert found.accuracy == summary["accuracy"]
    assert found.accuracy_recalibrated == summary["accuracy_recalibrated"]
    assert (found.data, found.samples, found.round) == ("digits", 359, 2)


def test_evaluation_b_is_what_the_network_for_inference_does(record: Run, net: nn.Module) -> None:
    data = load("digits")
    batches = eval_batches(data.test, mean=data.mean, std=data.std, seed=0)
    hits = sum(
        int((output(net, x).argmax(1) == y).sum()) for x, y in (batches[i] for i in range(len(batches)))
    )
    assert evaluate(record.folder, workers=1).accuracy_recalibrated == hits / len(data.test)


def test_other_data_are_seen_as_the_network_was_trained(record: Run, net: nn.Module) -> None:
    own = load("digits")
    darker = Split(own.test.images // 2, own.test.labels)
    other = DataSet.of("darker", darker, darker, own.classes)
    found = evaluate(record.folder, other, workers=1)
    x = (darker.images.float() / 255 - own.mean[0]) / own.std[0]
    assert found.data == "darker"
    assert found.accuracy_recalibrated == pytest.approx(
        float((output(net, x).argmax(1) == darker.labels).float().mean()), abs=1e-6
    )


def test_columns_of_other_data_may_be_named(record: Run, tmp_path: Path) -> None:
    test = load("digits").test
    rows = {"pixels": [png(image) for image in test.images], "digit": test.labels.tolist()}
    for name in ("train", "test"):
        pq.write_table(pa.table({**rows, "label": [0] * len(test)}), tmp_path / f"{name}.parquet")
    found = evaluate(record.folder, str(tmp_path), image="pixels", label="digit", workers=1)
    assert found.accuracy == evaluate(record.folder, workers=1).accuracy


def png(image: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(file, "png")
    return file.getvalue()


def test_data_that_do_not_fit_are_refused(record: Run) -> None:
    own = load("digits")
    wide = Split(torch.zeros(4, 1, 8, 9, dtype=torch.uint8), torch.arange(4))
    with pytest.raises(DataError, match="wide: images of 1x8x9; the network was trained on 1x8x8"):
        evaluate(record.folder, DataSet.of("wide", wide, wide, own.classes))
    with pytest.raises(DataError, match="more: 11 classes; the network was trained on 10"):
        evaluate(record.folder, DataSet.of("more", own.train, own.test, (*own.classes, "x")))


def test_exported_parameters_make_the_same_network(
    record: Run, net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    export(record.folder, tmp_path / "net.safetensors")
    other = build("digits-cnn-small", classes=10, shape=(1, 8, 8), seed=9)
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert output(other.eval(), images).equal(output(net, images))


def test_an_exported_program_takes_any_batch(
    record: Run, net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    export(record.folder, tmp_path / "net.pt2")
    about = {"leanfleet.json": ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=about).module()
    for batch in (1, 7):
        torch.testing.assert_close(output(program, images[:batch]), output(net, images[:batch]))
    assert json.loads(about["leanfleet.json"])["shape"] == [1, 8, 8]


def test_exported_torchscript_takes_any_batch(
    record: Run, net: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    export(record.folder, tmp_path / "net.ts")
    about = {"leanfleet.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.load(str(tmp_path / "net.ts"), _extra_files=about)
    for batch in (1, 7):
        torch.testing.assert_close(output(script, images[:batch]), output(net, images[:batch]))
    assert json.loads(about["leanfleet.json"])["mean"] == list(load("digits").mean)


def test_an_unknown_format_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"net\.onnx: what to write\? The name should end in \.safetensors, \.pt2"
    ):
        export(tmp_path / "no such run", tmp_path / "net.onnx")
    with pytest.raises(UserError, match=r"net\.pt2: there is no folder .*nowhere"):
        export(tmp_path / "no such run", tmp_path / "nowhere" / "net.pt2")


def test_a_run_without_a_checkpoint_has_no_network(record: Run, tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    shutil.copy(record.experiment_file, folder)
    with pytest.raises(RecordError, match="begun: has no checkpoint yet"):
        evaluate(folder)
