from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.errors import RecordError, StorageError
from leanfleet.storage import load_tensors, portable, save_tensors, write_bytes, write_json, write_text

TENSORS = {
    "w": torch.arange(6.0).reshape(2, 3),
    "n": torch.tensor(3),
    "h": torch.ones(2, dtype=torch.bfloat16),
}


def test_text_and_json(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "größer\n")
    write_json(tmp_path / "a.json", {"macs": 1.5, "list": [1, None]})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "größer\n"
    assert json.loads((tmp_path / "a.json").read_text()) == {"macs": 1.5, "list": [1, None]}


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old and long")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_bytes(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse, for real, to write more than `size` bytes to any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_refused_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_tensors(path, TENSORS, {"round": "3"})
    before = path.read_bytes()
    with largest_file(2**20), pytest.raises(StorageError, match=f"{path}: cannot be written: File too large"):
        save_tensors(path, {"w": torch.zeros(2**20)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_only_when_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="a: cannot be written: No space left on device"):
        write_bytes(tmp_path / "a", b"data")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "a", b"data")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written_to_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "a", tmp_path / "file" / "a"):
        with pytest.raises(StorageError, match=f"{path}: cannot be written: N") as caught:
            write_bytes(path, b"data")
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="a: cannot be written: Permission denied"):
            write_bytes(tmp_path / "a", b"data")
    finally:
        tmp_path.chmod(0o700)


def test_tensors_and_strings_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"round": "3", "name": "größe"})
    tensors, metadata = load_tensors(path)
    assert metadata == {"round": "3", "name": "größe"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_nothing_to_save(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", {}, {})
    assert load_tensors(tmp_path / "a") == ({}, {})


def test_loaded_tensors_outlive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {})
    tensors, _ = load_tensors(path)
    with path.open("r+b") as file:
        file.truncate(0)
    tensors["w"] += 1
    assert torch.equal(tensors["w"], TENSORS["w"] + 1)


@given(st.data())
def test_a_file_cut_short_is_named(tmp_path_factory: pytest.TempPathFactory, choice: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.safetensors"
    save_tensors(path, TENSORS, {"round": "3"})
    data = path.read_bytes()
    path.write_bytes(data[: choice.draw(st.integers(0, len(data) - 1))])
    with pytest.raises(RecordError, match=f"{path}: not a whole safetensors file") as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=100))
def test_other_bytes_are_named(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(RecordError, match=str(path)):
        load_tensors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="a: no such file"):
        load_tensors(tmp_path / "a")
    with pytest.raises(RecordError, match=str(tmp_path)):
        load_tensors(tmp_path)


def test_portable_copies_only_what_it_must() -> None:
    base = torch.zeros(4, 4)
    result = portable({"a": base, "b": base, "c": base.T, "d": base[2:]})
    assert result["a"].data_ptr() == base.data_ptr()
    assert len({tensor.data_ptr() for tensor in result.values()}) == 4
    assert all(tensor.is_contiguous() for tensor in result.values())
