"""An experiment as TOML: read, overridden, written.

Every error is one line that names the file (or the override), the section and the key. `load` takes relative paths in
a file from the file's folder, those in an override from the current one, and makes them absolute, as it does with the
folder in which it finds a network of the user's own: a record can be resumed from anywhere.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from leanfleet.energy import Energy
from leanfleet.errors import ExperimentError, did_you_mean
from leanfleet.experiment.base import M, Section, as_written
from leanfleet.experiment.families import FAMILIES, GossipFleet
from leanfleet.experiment.methods import METHODS
from leanfleet.experiment.sections import (
    BudgetSection,
    DataSection,
    EnergySection,
    Experiment,
    GeneralSection,
    MethodSection,
    NetworkSection,
)
from leanfleet.ledger import Budget
from leanfleet.nets import home, split_file
from leanfleet.split import SplitOptions

Tables = dict[str, dict[str, Any]]

_COMMON: Mapping[str, type[Section]] = {
    "experiment": GeneralSection,
    "data": DataSection,
    "network": NetworkSection,
}
_NAMES = (*_COMMON, *FAMILIES["federated"], "method", "budget", "energy")


def load(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment of a file.

    Args:
        path: A TOML file.
        overrides: `section.key=value`, each with a TOML value; bare words are strings. Naming another method drops
            the options of the file's: they mean nothing to it (but `cut` and `values`, from one split method to
            another). Of a method of another family, so does the file's `[training]`, and of `[fleet]` what that
            family does not know.

    Raises:
        ExperimentError: If the file or an override is wrong; one line says where and what.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ExperimentError(f"{path}: not a text file in UTF-8") from None
    return loads(text, overrides, where=str(path), folder=path.parent)


def loads(
    text: str, overrides: Sequence[str] = (), *, where: str = "experiment", folder: Path | None = None
) -> Experiment:
    """Return the experiment of a text; see `load`.

    Args:
        text: TOML.
        overrides: As in `load`.
        where: What errors call the text.
        folder: Where its relative paths begin; None leaves them as they are.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        end = f"at line {len(text.splitlines())}, the last one"
        raise ExperimentError(f"{where}: not TOML: {error}".replace("at end of document", end)) from None
    return _Reader(where, folder).read(tables, overrides)


def override(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """Return the experiment with some keys changed; `overrides` as in `load`, but relative paths stay so."""
    return _Reader("experiment", None).read(_tables(experiment), overrides)


def dumps(experiment: Experiment) -> str:
    """Return the experiment as TOML, complete with defaults; keys without a value (None) are left out."""
    return tomli_w.dumps(_tables(experiment))


def _tables(experiment: Experiment) -> Tables:
    tables: Tables = {
        name: getattr(experiment, name).model_dump(mode="json") for name in (*_COMMON, "fleet", "training")
    }
    tables["method"] = {"name": experiment.method.name, **experiment.method.options.model_dump(mode="json")}
    tables["budget"] = dataclasses.asdict(experiment.budget)
    if experiment.energy is not None:
        tables["energy"] = dataclasses.asdict(experiment.energy)
    return {
        name: {key: value for key, value in table.items() if value is not None}
        for name, table in tables.items()
    }


class _Reader:
    """Checks tables section by section, and knows where each key came from."""

    def __init__(self, where: str, folder: Path | None) -> None:
        self._where = where
        self._folder = folder
        # The same text under (section, None), for errors that concern a whole section.
        self._overridden: dict[tuple[str, str | None], str] = {}

    def read(self, raw: Mapping[str, Any], overrides: Sequence[str]) -> Experiment:
        tables = self._check_tables(raw)
        self._apply(tables, overrides)
        self._check_names(tables)
        method = self._method(tables.get("method", {}))
        models = {**_COMMON, **FAMILIES[method.family]}
        sections = {name: self._section(name, model, tables.get(name, {})) for name, model in models.items()}
        sections["network"] = self._located(sections["network"], method)
        budget = Budget(**self._section("budget", BudgetSection, tables.get("budget", {})).model_dump())
        energy = None
        if "energy" in tables:
            energy = Energy(**self._section("energy", EnergySection, tables["energy"]).model_dump())
        try:
            return Experiment(**sections, method=method, budget=budget, energy=energy)  # type: ignore[arg-type]
        except ExperimentError as error:
            raise ExperimentError(f"{self._where}: {error}") from None

    def _check_tables(self, raw: Mapping[str, Any]) -> Tables:
        for name, value in raw.items():
            if not isinstance(value, dict):
                raise ExperimentError(f"{self._where}: {name}: stands outside of a section{_home(name)}")
        return {name: dict(table) for name, table in raw.items()}

    def _check_names(self, tables: Tables) -> None:
        for name in tables:
            if name not in _NAMES:
                place = self._place(name, None)
                raise ExperimentError(f"{place}: [{name}]: unknown section{did_you_mean(name, _NAMES)}")

    def _apply(self, tables: Tables, overrides: Sequence[str]) -> None:
        changes = [(*_parse_override(text), text) for text in overrides]
        # The method's name first: it decides whether the options in the file still stand.
        for section, key, value, text in sorted(changes, key=lambda change: change[:2] != ("method", "name")):
            table = tables.setdefault(section, {})
            if (section, key) == ("method", "name") and value != table.get("name", MethodSection.name):
                before = table.get("name", MethodSection.name)
                _change_family(tables, before, value)
                kept = _common(before, value)
                tables[section] = table = {k: v for k, v in table.items() if k in kept}
            table[key] = value
            self._overridden[section, key] = self._overridden[section, None] = f"--set {text}"

    def _method(self, table: Mapping[str, Any]) -> MethodSection:
        options = dict(table)
        name = options.pop("name", MethodSection.name)
        if not isinstance(name, str) or name not in METHODS:
            hint = did_you_mean(str(name), METHODS)
            place = self._place("method", "name")
            raise ExperimentError(f"{place}: [method] name = {_shown(name)}: unknown method{hint}")
        return MethodSection(name, self._section("method", METHODS[name].Options, options))

    def _section(self, name: str, model: type[M], table: Mapping[str, Any]) -> M:
        try:
            section = as_written(model, table)
        except ValidationError as error:
            raise ExperimentError(self._fault(name, model, error.errors()[0])) from None
        paths: dict[str, Any] = {key: self._path(name, key, p) for key, p in section if isinstance(p, Path)}
        if isinstance(section, DataSection) and section.source_path is not None:
            paths["source"] = str(self._path(name, "source", section.source_path))
        if isinstance(section, GossipFleet) and section.graph_file is not None:
            file = self._path(name, "graph", section.graph_file)
            paths["graph"] = f"{section.graph.partition(':')[0]}:{file}"
        return section.model_copy(update=paths)

    def _located(self, network: Section, method: MethodSection) -> NetworkSection:
        """Return where to find networks of the user's own: a record's reader may stand elsewhere."""
        assert isinstance(network, NetworkSection)
        if self._folder is None:
            return network
        name, folder = split_file(network.name)
        if folder is not None:
            folder = self._path("network", "name", folder)
            if home(name, folder) is None:
                place = self._place("network", "name")
                raise ExperimentError(
                    f"{place}: [network] name = {_shown(network.name)}: no such file in {folder}"
                )
            return network.model_copy(update={"name": name, "folder": folder})
        own = next((n for n in (name, getattr(method.options, "network", None) or "") if ":" in n), None)
        if own is None or network.folder is not None:
            return network
        places = () if ("network", "name") in self._overridden else (self._folder.resolve(),)
        return network.model_copy(update={"folder": home(own, *places, Path.cwd())})

    def _path(self, section: str, key: str, path: Path) -> Path:
        if self._folder is None:
            return path
        base = Path() if (section, key) in self._overridden else self._folder
        return (base / path.expanduser()).resolve()

    def _fault(self, section: str, model: type[BaseModel], error: ErrorDetails) -> str:
        """Say in one line where a value is wrong, and how."""
        key = str(error["loc"][0]) if error["loc"] else None
        start = f"{self._place(section, key)}: [{section}]"
        if error["type"] == "extra_forbidden" and key is not None:
            near = (
                did_you_mean(key, model.model_fields) if model.model_fields else "; the method has no options"
            )
            return f"{start} {key}: unknown key{_home(key) or near}"
        what = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if error["type"] == "missing":
            return f"{start} {key} = {_shown(error['input'])}: too few values"
        if key is None:
            return f"{start} {what}"
        entry = "".join(f"[{part}]" for part in error["loc"][1:] if isinstance(part, int))
        return f"{start} {key}{entry} = {_shown(error['input'])}: {what}"

    def _place(self, section: str, key: str | None) -> str:
        return self._overridden.get((section, key), self._where)


def _parse_override(text: str) -> tuple[str, str, Any]:
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key and value.strip()):
        raise ExperimentError(f"--set {text}: should read section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return section, key, value.strip()
    # More than one key: the text had a line break in it.
    return section, key, parsed["value"] if len(parsed) == 1 else value


def _change_family(tables: Tables, before: Any, after: Any) -> None:
    """Leave out of the family's own sections what a method of another family does not know or would misread."""
    families = [METHODS[name].family for name in (before, after) if isinstance(name, str) and name in METHODS]
    if len(set(families)) < 2:
        return
    tables.pop("training", None)
    known = FAMILIES[families[1]]["fleet"].model_fields
    fleet = {key: value for key, value in tables.get("fleet", {}).items() if key in known}
    if "per_round" in known and isinstance(fleet.get("devices"), int):
        # Only federated files say how many take part in a round; a small fleet has not as many as usual.
        fleet.setdefault("per_round", min(known["per_round"].default, fleet["devices"]))
    tables["fleet"] = fleet


def _common(before: Any, after: Any) -> set[str]:
    """Return the options that mean the same to both methods: where split methods cut, and how values travel."""
    split = all(isinstance(n, str) and n in METHODS and METHODS[n].family == "split" for n in (before, after))
    return set(SplitOptions.model_fields) if split else set()


def _home(key: str) -> str:
    """Name the section in which a misplaced key belongs, if there is one."""
    common: Mapping[str, type[Section]] = {**_COMMON, "budget": BudgetSection, "energy": EnergySection}
    shared = [name for name, model in common.items() if key in model.model_fields]
    own = {
        f: [n for n, model in models.items() if key in model.model_fields] for f, models in FAMILIES.items()
    }
    homes = {*shared, *(name for names in own.values() for name in names)}
    if len(homes) != 1:
        return ""
    families = [family for family, names in own.items() if names]
    of = f" of {families[0]} methods" if len(families) == 1 else ""
    return f"; it belongs in [{homes.pop()}]{of}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
