"""The lookup table D: Pareto-optimal dropout vectors and what they cost (Rapp et al. 2022, "Run Time")."""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from leanfleet.errors import LutError, RecordError
from leanfleet.storage import load_tensors, save_tensors
from leanfleet.subnet.plan import SubnetPlan

FORMAT = 2

_MEASURED: Final = ("f2", "stderr", "seconds")


@dataclass(frozen=True)
class Row:
    """One dropout vector.

    Attributes:
        rates: [groups] one dropout rate a channel group, float32 values.
        macs: Expected forward MACs per sample.
        f2: The search's second objective, the gain lost to dropout (Rapp et al. 2022, eq. 1); None where nobody has
            measured it.
        stderr: Its standard error; None where it was measured once.
        seconds: Seconds of a training step where the search profiled them.
    """

    rates: tuple[float, ...]
    macs: float
    f2: float | None = None
    stderr: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Lut:
    """Rows by ascending MACs, with the network they were made for.

    Attributes:
        rows: Ascending in MACs.
        groups: (name, channels) of every rate.
        fingerprint: Of the network, see `SubnetPlan.fingerprint`.
        origin: How the table came to be, such as "uniform".
        about: What a search wrote down: settings, data, version, hypervolume, ...; ready for JSON.
    """

    rows: tuple[Row, ...]
    groups: tuple[tuple[str, int], ...]
    fingerprint: str
    origin: str
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: SubnetPlan, vectors: list[tuple[float, ...]], origin: str) -> Lut:
        """Return the table of these dropout vectors, costed by the plan.

        Rates are rounded to float32 first, so that a table keeps its costs when it is saved and loaded.
        """
        return cls.costed(plan, [Row(vector, 0.0) for vector in vectors], origin)

    @classmethod
    def costed(
        cls, plan: SubnetPlan, rows: Iterable[Row], origin: str, about: Mapping[str, Any] | None = None
    ) -> Lut:
        """Return the table of these rows, their MACs counted by the plan; see `of`."""
        rounded = [replace(r, rates=tuple(map(float, np.asarray(r.rates, dtype=np.float32)))) for r in rows]
        found = sorted((replace(r, macs=plan.macs(r.rates)) for r in rounded), key=lambda row: row.macs)
        groups = tuple((g.name, g.channels) for g in plan.groups)
        return cls(tuple(found), groups, plan.fingerprint, origin, about or {})

    @classmethod
    def uniform(cls, plan: SubnetPlan, levels: int = 64, highest: float = 0.5) -> Lut:
        """Return a table with one rate for all layers, equidistant in MACs (the state of the art's choice).

        Args:
            plan: The network.
            levels: Number of rows, at least 2.
            highest: The largest rate; the paper searches [0, 0.5].
        """
        full, least = plan.macs(plan.uniform(0.0)), plan.macs(plan.uniform(highest))
        inner = [plan.uniform_rate(float(m), highest) for m in np.linspace(least, full, levels)[1:-1]]
        return cls.of(plan, [plan.uniform(rate) for rate in (0.0, *inner, highest)], "uniform")

    @classmethod
    def shipped(cls, fingerprint: str) -> Lut | None:
        """Return the searched table that comes with the package for networks of a structure, or None.

        Its MACs are those of the network that was searched, with that one's number of classes.
        """
        with as_file(files("leanfleet.subnet") / "luts") as folder:
            return next((cls.load(path) for path in sorted(folder.glob(f"*-{fingerprint}.lut"))), None)

    def pick(self, budget: float) -> Row:
        """Return the most expensive row within `budget` forward MACs per sample; the row of least MACs if none is.

        Budgets are MACs always. What is expensive is what the table was searched for: where rows have seconds they
        are Pareto-optimal in those, not in MACs, so of all that fit it is the slowest that loses least.
        """
        at = bisect.bisect_right(self.rows, budget, key=lambda row: row.macs)
        return self._dearest[max(0, at - 1)]

    @cached_property
    def _dearest(self) -> tuple[Row, ...]:
        """The most expensive of the first row, of the first two, ..."""
        return tuple(itertools.accumulate(self.rows, lambda best, row: max(row, best, key=_price)))

    @property
    def cheapest(self) -> Row:
        """The row of least MACs."""
        return self.rows[0]

    def check(self, plan: SubnetPlan, source: str = "the LUT") -> None:
        """Check that the table was made for this network.

        Raises:
            LutError: It was not.
        """
        if self.fingerprint != plan.fingerprint:
            mine = tuple((g.name, g.channels) for g in plan.groups)
            what = "layers" if mine != self.groups else "structure"
            raise LutError(
                f"{source} was made for another network: its {what} differ ({len(self.groups)} channel groups, "
                f"{self.rows[-1].macs:,.0f} MACs; here {len(plan.groups)}, {plan.macs(plan.uniform(0.0)):,.0f})"
            )

    def save(self, path: Path) -> None:
        """Write the table as safetensors, one tensor a column, the header as metadata.

        `rates` is float32 [rows, groups]; `macs` and, where a search measured them, `f2`, `stderr`, `seconds` are
        float64 [rows], NaN in rows that were not measured.

        Raises:
            StorageError: The disk refuses.
        """
        header = {
            "format": FORMAT,
            "groups": self.groups,
            "fingerprint": self.fingerprint,
            "origin": self.origin,
            "about": dict(self.about),
        }
        tensors = {
            "rates": torch.tensor([row.rates for row in self.rows], dtype=torch.float32),
            "macs": torch.tensor([row.macs for row in self.rows], dtype=torch.float64),
        }
        for name in _MEASURED:
            values = [getattr(row, name) for row in self.rows]
            if any(value is not None for value in values):
                known = [math.nan if value is None else value for value in values]
                tensors[name] = torch.tensor(known, dtype=torch.float64)
        save_tensors(path, tensors, {"lut": json.dumps(header)})

    @classmethod
    def load(cls, path: Path) -> Lut:
        """Read a table.

        Raises:
            LutError: The file is missing, damaged or no LUT.
        """
        try:
            tensors, metadata = load_tensors(path)
            header: dict[str, Any] = json.loads(metadata["lut"])
            rates, macs = tensors["rates"], tensors["macs"]
            groups = tuple((str(name), int(channels)) for name, channels in header["groups"])
            vectors = [tuple(vector) for vector in rates.tolist()]
            known = {name: _values(tensors[name]) for name in _MEASURED if name in tensors}
            columns = [dict(zip(known, values, strict=True)) for values in zip(*known.values(), strict=True)]
            measured = columns or [{}] * len(vectors)
            rows = tuple(Row(v, m, **x) for v, m, x in zip(vectors, macs.tolist(), measured, strict=True))
            about = header.get("about", {})
            lut = cls(rows, groups, str(header["fingerprint"]), str(header["origin"]), about)
        except (OSError, RecordError) as error:
            raise LutError(str(error)) from error
        except (KeyError, ValueError, TypeError) as error:
            raise LutError(f"{path}: no table of dropout vectors; leanfleet search makes one") from error
        lut._check_values(path, header.get("format"))
        return lut

    def _check_values(self, path: Path, version: Any) -> None:
        sound = (
            len(self.rows) > 0
            and all(len(row.rates) == len(self.groups) for row in self.rows)
            and all(0.0 <= rate < 1.0 for row in self.rows for rate in row.rates)
            and all(math.isfinite(row.macs) and row.macs > 0 for row in self.rows)
            and list(self.rows) == sorted(self.rows, key=lambda row: row.macs)
        )
        if version not in (1, FORMAT):
            raise LutError(f"{path} has LUT format {version}; this version reads formats 1 and {FORMAT}")
        if not sound:
            raise LutError(f"{path} is damaged: rates or MACs out of range or out of order")


def _price(row: Row) -> tuple[float, float]:
    return (row.seconds or 0.0), row.macs


def _values(column: torch.Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in column.tolist()]
