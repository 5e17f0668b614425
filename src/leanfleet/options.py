"""What a method's own keys of an experiment file are made of, whatever its family."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A method's own keys of the `[method]` section."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
