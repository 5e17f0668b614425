"""What the sections of an experiment file are made of."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from leanfleet.errors import ExperimentError

M = TypeVar("M", bound=BaseModel)


def _folder_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text) is None:
        raise ValueError(
            "names a folder: letters, digits, '_', '-' and '.' only, the first one no '-' or '.'"
        )
    return text


# A folder of this name is made: no separators, no hidden or upper folders.
FolderName = Annotated[str, AfterValidator(_folder_name)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A table of the file: unknown keys, infinities and NaN are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def read_toml(path: Path, model: type[M], changes: Mapping[str, Any] | None = None) -> M:
    """Return the content of a TOML file as a model of it.

    Args:
        path: The file.
        model: What it should be.
        changes: Keys of the file that have other values.

    Raises:
        ExperimentError: The file cannot be read, or is wrong; one line says where and how.
    """
    try:
        raw = {**tomllib.loads(path.read_text(encoding="utf-8")), **(changes or {})}
        return as_written(model, raw)
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise ExperimentError(f"{path}: {where}: {what}") from None


def as_written(model: type[M], table: Mapping[str, Any]) -> M:
    """Return a table of TOML as a model of it: lists may be tuples and text paths, but no text is a number.

    Raises:
        ValidationError: The table is wrong.
    """
    return model.model_validate_json(json.dumps(table, default=str), strict=True)
