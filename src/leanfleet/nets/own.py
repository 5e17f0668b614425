"""Networks of the user's own: a function, by module and name or by file and name."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from leanfleet.errors import NetworkError, did_you_mean


def split_file(name: str) -> tuple[str, Path | None]:
    """Return `FOLDER/FILE.py:function` as `FILE:function` and its folder; any other name as it is, and None."""
    module, colon, function = name.rpartition(":")
    if not module.endswith(".py"):
        return name, None
    return f"{Path(module).stem}{colon}{function}", Path(module).parent


def home(name: str, *folders: Path) -> Path | None:
    """Return the first folder that holds the module of `module:function`, None if none does."""
    top = name.partition(":")[0].partition(".")[0]
    return next((f for f in folders if (f / f"{top}.py").is_file() or (f / top).is_dir()), None)


def maker(name: str, folder: Path | None, known: dict[str, Any]) -> Callable[[], nn.Module]:
    """Return what makes a network of the user's own.

    Args:
        name: `package.module:function`, or a file and a function, `FOLDER/FILE.py:function`.
        folder: Where the module is, beside the current folder and the installed packages.
        known: `classes` and `shape`, None where they are not; the function is given those that it has.

    Raises:
        NetworkError: There is no such function, or it needs to know more.
    """
    function = _find(name, folder)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise NetworkError(f"network '{name}': not a function") from error
    missing = [w for w, p in parameters.items() if w in known and known[w] is None and p.default is p.empty]
    if missing:
        raise NetworkError(f"network '{name}': needs to know its {missing[0]}; give --{missing[0]} too")
    taken = {word: value for word, value in known.items() if word in parameters and value is not None}

    def make() -> nn.Module:
        try:
            network = function(**taken)
        except Exception as error:
            raise NetworkError(f"network '{name}': {_line(error)}") from error
        if not isinstance(network, nn.Module):
            raise NetworkError(f"network '{name}': gave a {type(network).__name__}, not a torch.nn.Module")
        if any(nn.parameter.is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
            raise NetworkError(f"network '{name}': has lazy layers; say how many inputs they have")
        return network

    return make


def _find(name: str, folder: Path | None) -> Any:
    short, own = split_file(name)
    module_name, _, function_name = short.partition(":")
    if own is not None and not (own / f"{module_name}.py").is_file():
        raise NetworkError(f"network '{name}': there is no file {own / module_name}.py")
    module = _module(name, module_name, own or folder)
    try:
        return getattr(module, function_name)
    except AttributeError:
        known = [word for word, value in vars(module).items() if callable(value)]
        raise NetworkError(
            f"network '{name}': '{module_name}' has no '{function_name}'{did_you_mean(function_name, known)}"
        ) from None


def _module(name: str, module_name: str, folder: Path | None) -> ModuleType:
    for place in (folder, Path.cwd()):
        if place is not None and str(place.resolve()) not in sys.path:
            # Last, so that a file of the user's cannot hide an installed package; for good, so that the network's
            # code may import more later on.
            sys.path.append(str(place.resolve()))
    try:
        module = importlib.import_module(module_name)
    # A script of the user's may end itself.
    except (Exception, SystemExit) as error:
        raise NetworkError(f"network '{name}': '{module_name}' cannot be imported: {_line(error)}") from error
    wanted = folder and folder / f"{module_name}.py"
    found = getattr(module, "__file__", None)
    if wanted and wanted.is_file() and not (found and wanted.samefile(found)):
        raise NetworkError(
            f"network '{name}': another module is called '{module_name}' too ({found or 'of Python'}); rename {wanted}"
        )
    return module


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
