"""One run's record on disk: what was asked, what happened, and where to go on.

```
runs/NAME/
  experiment.toml                what was asked, complete with defaults
  events.jsonl                   a line for each round or evaluation
  checkpoint-ROUND.safetensors   the tensors of a round; the last two are kept
  state.json                     all else of these rounds, and the checkpoint that each goes with; written last
  summary.json                   what came out; there once the run is finished
  .lock                          held by the process that writes; the kernel lets go of it when that process dies
```

A process may be killed at any moment: `state.json` names only what is whole, and `Run.restore` cuts `events.jsonl`
back to it.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from leanfleet.errors import RecordError, RecordInUseError, did_you_mean
from leanfleet.storage import load_tensors, save_tensors, write_json, write_text, writing

_KEPT = 2


class Checkpoint(NamedTuple):
    """Where a run stood.

    Attributes:
        round: The number it was saved under.
        tensors: Named tensors, on the CPU.
        state: All else, as JSON keeps it.
    """

    round: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class _Entry(BaseModel):
    """What `state.json` knows of one checkpoint. Size and hash tell a file that was cut or swapped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: int = Field(ge=0)
    # A record may come from a stranger: no path that leads out of it.
    checkpoint: str = Field(pattern=r"^checkpoint-\d+\.safetensors$")
    checkpoint_bytes: int = Field(ge=0)
    blake2b: str
    events_bytes: int = Field(ge=0)
    state: dict[str, Any]


class _State(BaseModel):
    """The content of `state.json`: the kept checkpoints, newest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoints: tuple[_Entry, ...] = Field(min_length=1)


class Run:
    """A run's record. `create` and `restore` lock it for writing until `close`; reading needs no lock.

    Attributes:
        folder: The record's folder.
    """

    def __init__(self, folder: Path) -> None:
        """Name a record; see `create` and `open`."""
        self.folder = folder
        self._entries: tuple[_Entry, ...] = ()
        self._unlock: weakref.finalize[[int], Run] | None = None

    @classmethod
    def create(cls, name: str, experiment_toml: str, root: Path = Path("runs")) -> Self:
        """Begin a record in `root/name`, or in `root/name-2`, `-3`, ... if that exists; lock it.

        Args:
            name: Name of the run, fit for a folder.
            experiment_toml: The experiment, complete with defaults.
            root: Folder of all records.

        Raises:
            StorageError: If the disk refuses.
        """
        run = cls(new_folder(root, name))
        run._lock()
        write_text(run.experiment_file, experiment_toml)
        return run

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a record for reading; `restore` also prepares it for writing.

        Raises:
            RecordError: If there is no record in that folder.
        """
        run = cls(Path(folder))
        if not run.folder.is_dir():
            records = [path.parent.name for path in run.folder.parent.glob("*/experiment.toml")]
            hint = did_you_mean(run.folder.name, records) if records else ""
            raise RecordError(f"{run.folder}: no such run record{hint}")
        if not run.experiment_file.is_file():
            raise RecordError(f"{run.folder}: not a run record (it has no experiment.toml)")
        return run

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write; nothing is lost when this is forgotten."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def experiment_file(self) -> Path:
        """The experiment as it was asked for, complete with defaults."""
        return self.folder / "experiment.toml"

    def replace_experiment(self, experiment_toml: str) -> None:
        """Write the experiment anew, for what is known only once it is built.

        Raises:
            StorageError: If the disk refuses.
        """
        self._check_locked()
        write_text(self.experiment_file, experiment_toml)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / "summary.json").is_file()

    def summary(self) -> dict[str, Any] | None:
        """Return what came out, or None while the run is not finished.

        Raises:
            RecordError: If the summary is damaged.
        """
        path = self.folder / "summary.json"
        return _read_json(path) if self.finished else None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write what came out: the run is finished.

        Raises:
            StorageError: If the disk refuses.
        """
        self._check_locked()
        write_json(self.folder / "summary.json", dict(summary))

    def event(self, **fields: Any) -> None:
        """Append one line to `events.jsonl`.

        Raises:
            StorageError: If the disk refuses; no part of the line stays.
        """
        self._check_locked()
        line = json.dumps(fields).encode() + b"\n"
        before = self._events_bytes()
        with writing(self._events):
            try:
                with self._events.open("ab") as file:
                    file.write(line)
            except OSError:
                # What a full disk took of the line would spoil the next one.
                if self._events.exists():
                    os.truncate(self._events, before)
                raise

    def events(self) -> list[dict[str, Any]]:
        """Return all events; a last line that is only half there yet is left out.

        Raises:
            RecordError: If another line is damaged.
        """
        lines = self._events.read_bytes().split(b"\n")[:-1] if self._events.exists() else []
        return [_json_object(line, f"{self._events}: line {number}") for number, line in enumerate(lines, 1)]

    def checkpoint(self, round: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Save where the run stands, with all events so far; only the last two checkpoints are kept.

        Args:
            round: What to call it; larger than all before.
            tensors: Named tensors of any device.
            state: All else; whatever JSON holds.

        Raises:
            StorageError: If the disk refuses; the checkpoints before stay.
        """
        self._check_locked()
        path = self.folder / f"checkpoint-{round}.safetensors"
        save_tensors(path, tensors, {"round": str(round)})
        entry = _Entry(
            round=round,
            checkpoint=path.name,
            checkpoint_bytes=path.stat().st_size,
            blake2b=_blake2b(path),
            events_bytes=self._flushed_events_bytes(),
            state=dict(state),
        )
        entries = (entry, *self._entries)[:_KEPT]
        write_json(self.folder / "state.json", {"checkpoints": [entry.model_dump() for entry in entries]})
        self._entries = entries
        self._tidy({entry.checkpoint for entry in entries})

    def latest(self, at: int | None = None) -> Checkpoint | None:
        """Return the last checkpoint, or that of round `at`, or None if there is none yet; nothing is changed.

        Raises:
            RecordError: If `state.json` or the checkpoint is damaged, or that of round `at` is not there any more.
        """
        entries = self._until(at)
        return self._load(entries) if entries else None

    def restore(self, at: int | None = None) -> Checkpoint | None:
        """Lock the record, cut `events.jsonl` back to the last checkpoint, or to that of round `at`, and return it.

        None is returned where there is no checkpoint yet, and for round 0: the run starts there.

        Raises:
            RecordInUseError: If another process is writing the record.
            RecordError: If it is damaged; it stays as it is then.
            StorageError: If the disk refuses.
        """
        if self._unlock is None:
            self._lock()
        try:
            entries = self._until(at)
            found = self._load(entries) if entries else None
            self._cut_events(entries[0].events_bytes if entries else 0)
        except BaseException:
            self.close()
            raise
        self._entries = entries
        return found

    @property
    def _events(self) -> Path:
        return self.folder / "events.jsonl"

    def _events_bytes(self) -> int:
        return self._events.stat().st_size if self._events.exists() else 0

    def _cut_events(self, length: int) -> None:
        present = self._events_bytes()
        if present < length:
            raise RecordError(
                f"{self._events}: cut short: {present} of {length} bytes are left; the run cannot be resumed"
            )
        if present > length:
            with writing(self._events):
                os.truncate(self._events, length)

    def _flushed_events_bytes(self) -> int:
        # Before state.json gives the length: it must not be ahead of the disk when the power fails.
        if self._events.exists():
            with writing(self._events), self._events.open("ab") as file:
                os.fsync(file.fileno())
        return self._events_bytes()

    def _until(self, at: int | None) -> tuple[_Entry, ...]:
        """Return what is known of the checkpoints up to one, newest first."""
        entries = self._read_entries()
        if at is not None:
            entries = tuple(entry for entry in entries if entry.round <= at)
            if at and (not entries or entries[0].round != at):
                raise RecordError(f"{self.folder}: has no checkpoint of round {at} any more")
        return entries

    def _read_entries(self) -> tuple[_Entry, ...]:
        """Return what is known of the checkpoints, newest first, from the newest one that is still there."""
        path = self.folder / "state.json"
        if not path.exists():
            if len(list(self.folder.glob("checkpoint-*.safetensors"))) > 1:
                # After the first checkpoint it is there, whatever happens.
                raise RecordError(f"{path}: missing, though rounds were played; begin anew in another folder")
            return ()
        try:
            entries = _State.model_validate(_read_json(path)).checkpoints
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RecordError(
                f"{path}: damaged: {where}: {first['msg']}; the run cannot be resumed"
            ) from None
        for index, entry in enumerate(entries):
            if (self.folder / entry.checkpoint).exists():
                return entries[index:]
        raise RecordError(
            f"{path}: names {entries[0].checkpoint}, which is missing; the run cannot be resumed"
        )

    def _load(self, entries: tuple[_Entry, ...]) -> Checkpoint:
        entry, *older = entries
        path = self.folder / entry.checkpoint
        hint = f"; delete it to go on from {older[0].checkpoint}" if older else ""
        try:
            size, digest = path.stat().st_size, _blake2b(path)
        except OSError as error:
            raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
        if size != entry.checkpoint_bytes:
            raise RecordError(f"{path}: damaged: it has {size} bytes, not {entry.checkpoint_bytes}{hint}")
        if digest != entry.blake2b:
            raise RecordError(f"{path}: damaged: its content is not what was saved{hint}")
        tensors, _ = load_tensors(path)
        return Checkpoint(entry.round, tensors, entry.state)

    def _tidy(self, kept: set[str]) -> None:
        """Delete older checkpoints, and what a killed process left half-written."""
        for path in itertools.chain(self.folder.glob("checkpoint-*.safetensors"), self.folder.glob(".*.tmp")):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _lock(self) -> None:
        path = self.folder / ".lock"
        with writing(path):
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            self._unlock = weakref.finalize(self, os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise RecordInUseError(
                    f"{self.folder}: in use by another process; wait for it to end"
                ) from None

    def _check_locked(self) -> None:
        if self._unlock is None:
            raise RuntimeError(f"{self!r} is open for reading; restore() it before writing")


def new_folder(root: Path, name: str) -> Path:
    """Make and return `root/name`, or `root/name-2`, `-3`, ... if that exists.

    Raises:
        StorageError: If the disk refuses.
    """
    numbered = (root / f"{name}-{number}" for number in itertools.count(2))
    with writing(root / name):
        root.mkdir(parents=True, exist_ok=True)
        return next(folder for folder in itertools.chain([root / name], numbered) if _made(folder))


def clear_unborn(folder: Path) -> None:
    """Make way for a record where a process was killed before it had written another one's first file.

    Raises:
        RecordError: There is more in the way.
    """
    if folder.is_dir():
        for path in (*folder.glob(".lock"), *folder.glob(".experiment.toml.*.tmp")):
            path.unlink()
        try:
            folder.rmdir()
        except OSError as error:
            raise RecordError(f"{folder}: in the way of a new record: {error.strerror}; move it") from error


def _made(folder: Path) -> bool:
    # mkdir itself is the test: of two processes only one gets the name.
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _json_object(path.read_bytes(), f"{path}")
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error


def _json_object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{where}: damaged: {error}") from None
    if not isinstance(value, dict):
        raise RecordError(f"{where}: damaged: not a JSON object")
    return value


def _blake2b(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
