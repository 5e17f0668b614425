"""Arguments and options that several commands take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EngineName(StrEnum):
    """Where a fleet lives."""

    local = "local"
    peers = "peers"


Engine = Annotated[
    EngineName,
    typer.Option(help="local: simulated on this machine. peers: one process a node, started by torchrun."),
]
File = Annotated[Path, typer.Argument(metavar="X.toml", help="An experiment file.")]
Files = Annotated[list[Path], typer.Argument(metavar="X.toml...", help="Experiment files.")]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/distreal-digits.")
]
RunFolders = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Folders of runs or of comparisons.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override the file; may be given several times."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes.", show_default="one a core; resuming: as before")
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
DeviceBefore = Annotated[
    str | None,
    typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, ...", show_default="as before"),
]
ImageColumn = Annotated[
    str | None,
    typer.Option("--image", metavar="COLUMN", help="Where the images of --data are.", show_default="found"),
]
LabelColumn = Annotated[
    str | None, typer.Option("--label", metavar="COLUMN", help="Where its labels are.", show_default="found")
]
Json = Annotated[bool, typer.Option("--json", help="Print plain JSON instead of tables.")]
