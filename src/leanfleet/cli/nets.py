"""`leanfleet nets`: what networks there are, what they cost, and where they can be cut in two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import click
import typer
from typer.core import TyperCommand

from leanfleet.cli.options import Json
from leanfleet.console import busy, fitting_tables, print_json, print_tables, simple_table
from leanfleet.errors import UserError

_CUT = "--cut"
_WHOLE = ("name", "image", "classes", "MACs", "of convs", "parameters", "groups")
_PLACES = (
    "node",
    "layers",
    "layer",
    "crosses",
    "values",
    "MACs",
    "parameters",
    "MACs there",
    "parameters there",
)


class NetsCommand(TyperCommand):
    """Takes `--cut` with a place after it, or without."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; a bare `--cut` becomes an empty one."""
        following = [*args[1:], "-"]
        bare = [
            f"{_CUT}=" if arg == _CUT and after.startswith("-") else arg
            for arg, after in zip(args, following, strict=False)
        ]
        return super().parse_args(ctx, bare)


def nets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A network, or file.py:function of yours."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Never drop its channels; may be given several times."),
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(
            _CUT, metavar="[AT]", help="Cut it after so many layers or at a node; alone, list the places."
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes.", show_default="the usual")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Shape of one image.", show_default="the usual")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the reference networks, or show one network: its layers, channel groups and MACs, or its halves."""
    from leanfleet.engines.describe import network, parse_shape
    from leanfleet.nets import NETWORKS

    image = parse_shape(shape) if shape else None
    if cut is not None:
        _show_cut(name, cut, keep, classes, image, as_json)
        return
    if name is None:
        with busy("tracing the reference networks"):
            found = [network(known, classes=classes) for known in NETWORKS]
        if as_json:
            print_json(found)
        else:
            print_tables(fitting_tables("reference networks", _WHOLE, map(_network_cells, found)))
        return
    one = network(name, keep=keep, classes=classes, shape=image)
    if as_json:
        print_json(one)
        return
    layers = [(layer["layer"], layer["kind"], f"{layer['macs']:,}") for layer in one["layers"]]
    groups = [(g["name"], f"{g['channels']:,}", ", ".join(g["layers"])) for g in one["groups"]]
    print_tables([
        simple_table("layers", ("layer", "kind", "MACs"), layers),
        simple_table("channel groups", ("group", "channels", "layers"), groups),
        simple_table("the whole network", ("what", "value"), zip(_WHOLE, _network_cells(one), strict=True)),
    ])  # fmt: skip


def _show_cut(
    name: str | None,
    at: str,
    keep: Sequence[str] | None,
    classes: int | None,
    shape: tuple[int, int, int] | None,
    as_json: bool,
) -> None:
    from leanfleet.engines.describe import cut_at, cut_places

    if name is None:
        raise UserError("--cut: of which network? Name it in front: leanfleet nets NAME --cut")
    if keep:
        raise UserError("--keep: does not go with --cut")
    if not at:
        with busy(f"looking for places to cut {name}"):
            found = cut_places(name, classes=classes, shape=shape)
        if as_json:
            print_json(found)
        else:
            title = f"places to cut {name}: on the client, and there, on the server"
            print_tables(fitting_tables(title, _PLACES, map(_place_cells, found)))
        return
    one = cut_at(name, at, classes=classes, shape=shape)
    if as_json:
        print_json(one)
    else:
        print(
            f"{name} cut at {at}: {_size(one['shape'])} = {one['values']:,} numbers cross for every sample\n"
        )
        halves = [(h, f"{one[f'{h}_macs']:,}", f"{one[f'{h}_params']:,}") for h in ("client", "server")]
        print_tables([simple_table(None, ("half", "MACs", "parameters"), halves)])


def _place_cells(found: dict[str, Any]) -> tuple[str, ...]:
    sizes = (
        f"{found[key]:,}"
        for key in ("values", "client_macs", "client_params", "server_macs", "server_params")
    )
    layers = "" if found["layers"] is None else str(found["layers"])
    return found["node"], layers, found["layer"], _size(found["shape"]), *sizes


def _network_cells(found: dict[str, Any]) -> tuple[str, ...]:
    return (
        found["name"],
        _size(found["shape"]),
        str(found["classes"] or "-"),
        *(f"{found[key]:,.0f}" for key in ("macs", "macs_conv", "params")),
        str(len(found["groups"])),
    )


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
