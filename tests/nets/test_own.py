"""Networks of the user's own: what they are given, where they are found, what can be wrong with them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from leanfleet.errors import NetworkError
from leanfleet.nets import build, home, split_file

CODE = """
from torch import nn
from helper_of_own import WIDTH
def net():
    return nn.Linear(WIDTH, 2)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside the current one, with a network in a file that imports another one."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "nets" / "mine_of_own.py").write_text(CODE)
    (tmp_path / "nets" / "helper_of_own.py").write_text("WIDTH = 3")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine_of_own", "helper_of_own"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "nets"


def test_a_file_and_a_function_are_enough(folder: Path) -> None:
    for name in ("../nets/mine_of_own.py:net", f"{folder}/mine_of_own.py:net"):
        assert build(name).in_features == 3


def test_a_module_is_found_in_the_folder_that_is_given(folder: Path) -> None:
    with pytest.raises(NetworkError, match="'mine_of_own' cannot be imported"):
        build("mine_of_own:net")
    assert build("mine_of_own:net", folder=Path("../nets")).in_features == 3


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(NetworkError, match=r"'no/such\.py:net': there is no file no/such\.py"):
        build("no/such.py:net")


def test_another_module_of_the_same_name_is_not_taken_for_it(folder: Path) -> None:
    build("../nets/mine_of_own.py:net")
    Path("mine_of_own.py").write_text(CODE)
    Path("json.py").write_text(CODE)
    for name in ("mine_of_own", "json"):
        with pytest.raises(NetworkError, match=f"another module is called '{name}' too .* rename {name}.py"):
            build(f"{name}.py:net")


def test_files_and_modules_are_told_apart() -> None:
    assert split_file("a/b.py:net") == ("b:net", Path("a"))
    assert split_file("b.py:net") == ("b:net", Path())
    assert split_file("a.b:net") == ("a.b:net", None)
    assert split_file("lenet") == ("lenet", None)


def test_the_home_of_a_module_is_the_first_folder_that_has_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "mine").mkdir()
    (tmp_path / "c" / "mine.py").touch()
    folders = [tmp_path / name for name in ("a", "b", "c")]
    assert home("mine:net", *folders) == home("mine.deep:net", *folders) == tmp_path / "b"
    assert home("other:net", *folders) is None


class TestUsersOwn:
    SOURCE = """
from torch import nn
def plain(): return nn.Linear(2, 3)
def sized(classes): return nn.Linear(2, classes)
def shaped(*, shape, classes=5): return nn.Linear(shape[0], classes)
def wrong(): return 3
def broken(classes): raise RuntimeError("out of\\nluck")
def other(width): return nn.Linear(2, width)
def lazy(): return nn.Sequential(nn.LazyLinear(3))
constant = 3
"""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "mynets.py").write_text(self.SOURCE)
        (tmp_path / "endsnets.py").write_text("import sys\nsys.exit(1)\n")
        (tmp_path / "badnets.py").write_text("import nowhere_to_be_found\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        for module in ("mynets", "badnets"):
            monkeypatch.delitem(sys.modules, module, raising=False)

    @pytest.mark.parametrize(("function", "size"), [("plain", (3, 2)), ("sized", (4, 2)), ("shaped", (4, 1))])
    def test_gets_the_keywords_it_has(self, function: str, size: tuple[int, int]) -> None:
        net = build(f"mynets:{function}", classes=4, shape=(1, 8, 8))
        assert isinstance(net, nn.Linear)
        assert net.weight.shape == size

    def test_unknown_values_are_left_to_its_defaults(self) -> None:
        net = build("mynets:shaped", shape=(1, 8, 8))
        assert isinstance(net, nn.Linear)
        assert net.out_features == 5

    def test_is_seeded(self) -> None:
        one, other = build("mynets:plain", seed=1), build("mynets:plain", seed=1)
        assert torch.equal(next(one.parameters()), next(other.parameters()))

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("nowhere:net", "'nowhere' cannot be imported: ModuleNotFoundError"),
            ("badnets:net", "'badnets' cannot be imported: ModuleNotFoundError: No module named 'nowhere_to"),
            ("mynets:plian", r"'mynets' has no 'plian'; did you mean 'plain'\?"),
            ("mynets:wrong", "gave a int, not a torch.nn.Module"),
            ("mynets:constant", "not a function"),
            ("mynets:broken", "RuntimeError: out of$"),
            ("mynets:shaped", "needs to know its shape; give --shape too$"),
            ("mynets:other", "TypeError: .* missing .*'width'"),
            ("mynets:lazy", "has lazy layers"),
            ("endsnets:net", "'endsnets' cannot be imported: SystemExit: 1"),
            ("mynets.py", "which function of that file"),
            (":net", "''"),
        ],
    )
    def test_mistakes_are_named(self, name: str, text: str) -> None:
        with pytest.raises(NetworkError, match=text) as caught:
            build(name, classes=4)
        assert str(caught.value).startswith(f"network '{name}': ")
        assert "\n" not in str(caught.value)
