"""Files that are either whole or not there: text, JSON and named tensors (safetensors).

A file is written under a temporary name (`.NAME.PID.tmp`) in its own folder, flushed to the disk, and
renamed. A process that is killed leaves at most such a temporary file behind.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from leanfleet.errors import RecordError, StorageError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that `path` holds either its old content or all of the new one, whatever happens.

    Raises:
        StorageError: If the disk refuses (full, read-only, no such folder).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            # Also on Ctrl-C: a record should not fill up with leftovers.
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk says into a StorageError that names the file.

    Raises:
        StorageError: If it refuses.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors and a few strings as safetensors, whole or not at all; see `write_bytes`."""
    write_bytes(path, safetensors.torch.save(portable(tensors), dict(metadata) or None))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the strings of a safetensors file; nothing in it can run code.

    Raises:
        RecordError: If the file is missing, cut short or otherwise damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Copies: the file may be overwritten or deleted while its tensors live on.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise RecordError(f"{path}: not a whole safetensors file ({error})") from error


def portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as safetensors wants them: on the CPU, contiguous, none sharing memory with another.

    Tensors that are so already are passed on without a copy.
    """
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        result[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return result
