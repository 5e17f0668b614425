"""What an interrupted search leaves behind, in one file beside the table it is going to write."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from leanfleet.errors import LutError, RecordError
from leanfleet.search.trials import Values
from leanfleet.storage import load_tensors, save_tensors

_FORMAT = 4
_NUMBERS = (
    "start_accuracy", "anchored", "reserve", "allowed", "final_line", "final_mixed", "budget", "training_samples",
    "seconds", "seconds_training", "seconds_search", "seconds_outside",
)  # fmt: skip


@dataclass
class State:
    """Everything that is done so far; a strategy is brought back by asking it the same questions again.

    Attributes:
        path: The file.
        settings: What was asked for; a search goes on only with the same.
        params: What short trainings start from; empty before pre-training is done.
        anchors: Gains [2, 2] of the constant vectors, a seed each: (vector, measure).
        told: Gains [n, 2] of every question's short trainings; NaN where there was no time for one.
        begun: Gains [2] of what of the present question, anchor or look at the final front is done, by `trial_key`.
        allowed: How many short trainings each question was allowed to ask for; that under way is the last.
        final_rates: The vectors [m, groups] whose gains are measured anew at the end.
        final: Gains [m, 2] of those, a seed each.
        profile: Coefficients of the step time, where that is the cost.
        start_accuracy: Accuracy of `params`.
        anchored: Whether a question was ever asked: its answers are compared with the anchors there were.
        reserve: Seconds of the budget that are kept for the final front, once that is known.
        final_line: How many of those have one rate for all layers.
        final_mixed: How many of them lie between two that were chosen.
        budget: Seconds that were allowed for everything.
        training_samples: Samples that short trainings have seen, those of the final front included.
        seconds: Time spent.
        seconds_training: Of that, the time in which workers trained and measured.
        seconds_search: Time between the anchors and the final front.
        seconds_outside: Of that, the time in which no worker trained or measured.
    """

    path: Path
    settings: dict[str, Any]
    params: dict[str, Tensor] = field(default_factory=dict)
    anchors: list[Values] = field(default_factory=list)
    told: list[Values] = field(default_factory=list)
    begun: dict[bytes, Values] = field(default_factory=dict)
    final_rates: Values | None = None
    final: list[Values] = field(default_factory=list)
    profile: Values | None = None
    start_accuracy: float = 0.0
    anchored: bool = False
    reserve: float | None = None
    allowed: list[float] = field(default_factory=list)
    final_line: int = 0
    final_mixed: int = 0
    budget: float = math.inf
    training_samples: int = 0
    seconds: float = 0.0
    seconds_training: float = 0.0
    seconds_search: float = 0.0
    seconds_outside: float = 0.0

    @staticmethod
    def place(out: Path, *, resume: bool) -> Path:
        """Return the file for a table.

        Raises:
            LutError: There is something to go on with and nobody asked to, or the other way round.
        """
        path = out.with_name(out.name + ".partial")
        if not out.parent.is_dir():
            raise LutError(f"{out}: there is no folder {out.parent}")
        if out.is_dir():
            raise LutError(f"{out}: is a folder; should be a file such as net.lut")
        if path.exists() and not resume:
            raise LutError(f"{path}: a search was interrupted; go on with --resume, or remove the file")
        if resume and not path.exists():
            raise LutError(f"{path}: there is nothing to resume")
        return path

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any], *, resume: bool) -> Self:
        """Return what there is, or nothing done yet.

        Raises:
            LutError: The file is damaged, or of a search with other settings.
        """
        return cls._load(path, settings) if resume else cls(path, settings)

    @classmethod
    def _load(cls, path: Path, settings: dict[str, Any]) -> Self:
        try:
            tensors, metadata = load_tensors(path)
            about = json.loads(metadata["search"])
            if about["format"] != _FORMAT:
                raise LutError(f"{path}: of another version of leanfleet; remove it and search anew")
            found = cls(
                path,
                about["settings"],
                {n.removeprefix("params/"): t for n, t in tensors.items() if n.startswith("params/")},
                [tensors[f"anchors/{i}"].numpy() for i in range(about["anchors"])],
                [tensors[f"told/{i}"].numpy() for i in range(about["told"])],
                dict(
                    zip(
                        map(bytes, tensors["begun/keys"].numpy()), tensors["begun/gains"].numpy(), strict=True
                    )
                ),
                tensors["final_rates"].numpy() if "final_rates" in tensors else None,
                [tensors[f"final/{i}"].numpy() for i in range(about["final"])],
                tensors["profile"].numpy() if "profile" in tensors else None,
                **about["numbers"],
            )
        except (RecordError, KeyError, ValueError, TypeError) as error:
            raise LutError(f"{path}: damaged: {error}; remove it and search anew") from error
        for name, value in settings.items():
            if name != "contents" and found.settings.get(name) != value:
                raise LutError(
                    f"{path}: was begun with {name} = {found.settings.get(name)}, not {value}; "
                    "give the same, or remove the file"
                )
        if found.settings.get("contents") != settings.get("contents"):
            raise LutError(
                f"{path}: was begun with another network or other data of the same name; give the same, or remove "
                "the file"
            )
        return found

    def reopen(self, budget: float) -> None:
        """Take note of how many seconds are allowed now; with more than before, the search itself goes on."""
        if budget != self.budget:
            self.reserve = None
            # The question under way may have another size now; what is answered of it stays in `begun`.
            del self.allowed[len(self.told) :]
        if budget > self.budget:
            self.final_rates, self.final = None, []
        self.budget = budget

    def save(self) -> None:
        """Write everything, whole or not at all.

        Raises:
            StorageError: The disk refuses.
        """
        tensors = {f"params/{name}": p for name, p in self.params.items()}
        for name, values in (("anchors", self.anchors), ("told", self.told), ("final", self.final)):
            tensors |= {
                f"{name}/{i}": torch.from_numpy(np.ascontiguousarray(v)) for i, v in enumerate(values)
            }
        keys = np.array([np.frombuffer(key, dtype=np.uint8) for key in self.begun]).astype(np.uint8)
        tensors["begun/keys"] = torch.from_numpy(keys)
        tensors["begun/gains"] = torch.from_numpy(np.array([*self.begun.values()]).reshape(-1, 2))
        for name, array in (("profile", self.profile), ("final_rates", self.final_rates)):
            if array is not None:
                tensors[name] = torch.from_numpy(array)
        about = {
            "format": _FORMAT,
            "settings": self.settings,
            "anchors": len(self.anchors),
            "told": len(self.told),
            "final": len(self.final),
            "numbers": {name: getattr(self, name) for name in _NUMBERS},
        }
        save_tensors(self.path, tensors, {"search": json.dumps(about)})

    def keep(self, into: list[Values], gains: Values) -> None:
        """Put the gains of what was being trained where they belong; the next short trainings are others."""
        into.append(gains)
        self.begun = {}

    def remove(self) -> None:
        """Remove the file: the table is written."""
        self.path.unlink(missing_ok=True)


def trial_key(rates: Values, seed: int) -> bytes:
    """Return what a short training is known by: its vector [groups] and its seed."""
    return rates.tobytes() + seed.to_bytes(8, "little", signed=True)
