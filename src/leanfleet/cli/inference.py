"""What is done with a run's network once it is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from leanfleet.cli.options import Device, ImageColumn, Json, LabelColumn, RunFolder, Workers
from leanfleet.console import busy, print_json, print_tables, simple_table
from leanfleet.errors import UserError


def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="A data set, as in \\[data] source.", show_default="the run's"),
    ] = None,
    image: ImageColumn = None,
    label: LabelColumn = None,
    workers: Workers = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Evaluate a run's network: with the test batch's norm statistics (A), and recalibrated (B); or every client's."""
    from leanfleet.engines import inference

    if data is None and (image or label):
        raise UserError("--image, --label: go with --data; the run's own are in its experiment.toml")
    with busy(f"evaluating {run}"):
        found = inference.evaluate(run, data, image=image, label=label, workers=workers, device=device)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    print(f"{run} after round {found.round}, on {found.samples:,} test images of {found.data}\n")
    if found.accuracies is not None and found.numbers is not None:
        means = [("mean", f"{100 * found.accuracy:.2f}", f"{found.loss:.4f}")]
        each = [(str(i), f"{100 * a:.2f}", "") for i, a in zip(found.numbers, found.accuracies, strict=True)]
        print_tables([simple_table(None, (found.who, "accuracy [%]", "loss"), [*each, *means])])
        return
    rows = [
        ("A", f"{100 * found.accuracy:.2f}", f"{found.loss:.4f}"),
        ("B", f"{100 * (found.accuracy_recalibrated or 0):.2f}", f"{found.loss_recalibrated or 0:.4f}"),
    ]
    print_tables([simple_table(None, ("evaluation", "accuracy [%]", "loss"), rows)])


def export(
    run: RunFolder,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Name ending in .safetensors, .pt2 or .ts.")
    ],
    client: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Whose network, of a split or gossip run; 'new': of a client never seen before; 'mean': of all nodes.",
        ),
    ] = None,
) -> None:
    """Write a run's network for inference, with recalibrated norm statistics."""
    from leanfleet.engines import inference

    with busy(f"exporting {run}"):
        inference.export(run, output, client=client)
    print(output)
