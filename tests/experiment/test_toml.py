from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanfleet.errors import ExperimentError
from leanfleet.experiment import (
    METHODS,
    DataSection,
    Experiment,
    FederatedFleet,
    FederatedTraining,
    GeneralSection,
    MethodSection,
    NetworkSection,
    SplitFleet,
    SplitTraining,
    dumps,
    load,
    loads,
    override,
)
from leanfleet.ledger import Budget

EXAMPLES = Path(__file__).parents[2] / "examples"

text = st.text(min_size=1, max_size=20)
counts = st.integers(1, 10**12)
positive = st.floats(0, exclude_min=True, allow_infinity=False)
shares = st.floats(0, 1, exclude_min=True)
unit = st.floats(0, 1, exclude_max=True)
optional_paths = st.none() | st.sampled_from([Path("/data/x y"), Path("lut.json"), Path("über/ä.csv")])


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def fleets(draw: st.DrawFn, writers: bool) -> FederatedFleet:
    devices = draw(counts)
    kind = draw(st.sampled_from(["exponential", "constant", "uniform", "trace"]))
    return FederatedFleet(
        devices=None if writers else devices,
        per_round=draw(st.integers(1, devices)),
        availability=kind,
        trace=draw(optional_paths.filter(bool)) if kind == "trace" else None,
        ratio=draw(st.floats(1, allow_infinity=False)),
        changes_per_round=draw(st.floats(0, allow_infinity=False)),
        round_seconds=draw(positive),
        rule=draw(st.sampled_from(["pace", "slot"])),
        margin=draw(unit),
        late=draw(st.sampled_from(["partial", "discard"])),
    )


@st.composite
def experiments(draw: st.DrawFn) -> Experiment:
    partition = draw(st.sampled_from(["writer", "iid", "dirichlet(0.1)"]))
    return Experiment(
        GeneralSection(
            name=draw(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,50}", fullmatch=True)),
            seed=draw(st.integers(0, 2**70)),
            rounds=draw(counts),
            eval_every=draw(counts),
        ),
        DataSection(
            source=draw(text),
            folder=draw(optional_paths),
            partition=partition,
            image=draw(optional(text)),
            label=draw(optional(text)),
            writer=draw(optional(text)),
            augment=draw(st.sampled_from(["none", "crop-flip"])),
        ),
        NetworkSection(
            name=draw(text),
            folder=draw(optional_paths),
            keep=draw(optional(st.lists(text, max_size=3).map(tuple))),
        ),
        draw(fleets(writers=partition == "writer" and draw(st.booleans()))),
        FederatedTraining(
            lr=draw(positive),
            momentum=draw(unit),
            weight_decay=draw(st.floats(0, allow_infinity=False)),
            batch_size=draw(counts),
            epochs=draw(counts),
            milestones=tuple(sorted(draw(st.sets(shares, max_size=4)))),
            gamma=draw(shares),
            clip_norm=draw(optional(positive)),
        ),
        draw(methods("federated")),
        Budget(draw(optional(positive)), draw(optional(positive)), draw(optional(positive))),
    )


@st.composite
def split_experiments(draw: st.DrawFn) -> Experiment:
    training = SplitTraining(
        lr=draw(positive),
        weight_decay=draw(st.floats(0, allow_infinity=False)),
        batch_size=draw(counts),
        iterations=draw(optional(counts)),
    )
    fleet = SplitFleet(
        devices=draw(counts),
        uplink_bytes_per_s=draw(positive),
        server_speed=draw(positive),
        iteration_seconds=draw(optional(positive)),
    )
    return Experiment(fleet=fleet, training=training, method=draw(methods("split")))


def methods(family: str) -> st.SearchStrategy[MethodSection]:
    names = sorted(name for name, method in METHODS.items() if method.family == family)
    return st.sampled_from(names).map(lambda name: MethodSection(name, METHODS[name].Options()))


@given(experiments() | split_experiments())
def test_what_is_written_reads_the_same(experiment: Experiment) -> None:
    written = dumps(experiment)
    assert loads(written) == experiment
    assert dumps(loads(written)) == written
    assert override(experiment, []) == experiment


@given(experiments() | split_experiments())
def test_what_is_written_is_complete(experiment: Experiment) -> None:
    tables = tomllib.loads(dumps(experiment))
    assert list(tables) == ["experiment", "data", "network", "fleet", "training", "method", "budget"]
    for name, table in tables.items():
        section = experiment.options if name == "method" else getattr(experiment, name)
        values = dict(section) if name != "budget" else vars(section)
        expected = {key for key, value in values.items() if value is not None}
        if name == "fleet":
            expected.add("devices")
        assert set(table) - {"name"} == expected - {"name"}
    assert tables["method"]["name"] == experiment.method.name


def test_an_empty_text_is_the_default_experiment() -> None:
    assert loads("") == Experiment()


def test_one_device_a_writer_is_written_in_words() -> None:
    x = loads('data.partition = "writer"\nfleet.devices = "writers"')
    assert x.fleet.devices is None
    assert 'devices = "writers"' in dumps(x)


def test_a_text_error_is_found_by_its_line() -> None:
    with pytest.raises(ExperimentError) as caught:
        loads("[experiment]\nseed = 1\nrounds 5\n", where="x.toml")
    assert (
        str(caught.value)
        == "x.toml: not TOML: Expected '=' after a key in a key/value pair (at line 3, column 8)"
    )
    with pytest.raises(ExperimentError, match=r"x.toml: not TOML: .*\(at line 2, the last one\)"):
        loads('[experiment]\nname = "x', where="x.toml")


BAD = [
    ("[experiment]\nruonds = 5", "[experiment] ruonds: unknown key; did you mean 'rounds'?"),
    ("[experiment]\nlr = 5", "[experiment] lr: unknown key; it belongs in [training]"),
    ("[flet]\ndevices = 5", "[flet]: unknown section; did you mean 'fleet'?"),
    ("rounds = 5", "rounds: stands outside of a section; it belongs in [experiment]"),
    ("zzz = 5", "zzz: stands outside of a section"),
    ("fleet = 5", "fleet: stands outside of a section"),
    ("[experiment]\nrounds = 0", "[experiment] rounds = 0: should be greater than or equal to 1"),
    ("[experiment]\nrounds = 1.5", "[experiment] rounds = 1.5: should be a valid integer"),
    ('[experiment]\nrounds = "5"', '[experiment] rounds = "5": should be a valid integer'),
    ("[experiment]\nseed = true", "[experiment] seed = true: should be a valid integer"),
    ("[experiment]\nseed = -1", "[experiment] seed = -1: should be greater than or equal to 0"),
    ("[experiment]\neval_every = 0", "[experiment] eval_every = 0: should be greater than or equal to 1"),
    ('[experiment]\nname = "../x"', '[experiment] name = "../x": names a folder: letters, digits,'),
    ('[data]\naugment = "flip"', "[data] augment = \"flip\": should be 'none' or 'crop-flip'"),
    ('[data]\nsource = ""', '[data] source = "": String should have at least 1 character'),
    ("[data]\nfolder = 3", "[data] folder = 3: should be a valid string"),
    ("[network]\nkeep = [1]", "[network] keep[0] = 1: should be a valid string"),
    ('[network]\nkeep = "conv1"', '[network] keep = "conv1": should be a valid array'),
    ("[fleet]\ndevices = 0", "[fleet] devices = 0: should be greater than or equal to 1"),
    ("[fleet]\ndevices = 5", "[fleet] per_round = 10: more than the 5 devices"),
    (
        '[fleet]\ndevices = "all"',
        '[fleet] devices = "all": should be a number, or "writers" for one device a writer',
    ),
    (
        '[fleet]\ndevices = "writers"',
        '[fleet] devices = "writers": only goes with [data] partition = "writer"',
    ),
    ("[fleet]\nratio = 0.5", "[fleet] ratio = 0.5: should be greater than or equal to 1"),
    ("[fleet]\nratio = inf", "[fleet] ratio = Infinity: should be a finite number"),
    (
        "[fleet]\nchanges_per_round = -2",
        "[fleet] changes_per_round = -2: should be greater than or equal to 0",
    ),
    ("[fleet]\nchanges_per_round = nan", "[fleet] changes_per_round = NaN: should be a finite number"),
    ("[fleet]\nround_seconds = 0", "[fleet] round_seconds = 0: should be greater than 0"),
    ("[fleet]\nmargin = 1.0", "[fleet] margin = 1.0: should be less than 1"),
    ("[fleet]\nmargin = -0.1", "[fleet] margin = -0.1: should be greater than or equal to 0"),
    ('[fleet]\nrule = "pacer"', "[fleet] rule = \"pacer\": should be 'pace' or 'slot'"),
    ('[fleet]\navailability = "trace"', '[fleet] availability = "trace": needs trace = "FILE.csv" too'),
    ('[fleet]\ntrace = "x.csv"', '[fleet] availability = "exponential": does not go with a trace'),
    ("[training]\nlr = -0.1", "[training] lr = -0.1: should be greater than 0"),
    ("[training]\nmomentum = 1", "[training] momentum = 1: should be less than 1"),
    ("[training]\nweight_decay = -1", "[training] weight_decay = -1: should be greater than or equal to 0"),
    ("[training]\nbatch_size = 0", "[training] batch_size = 0: should be greater than or equal to 1"),
    ("[training]\nmilestones = [0.5, 2]", "[training] milestones[1] = 2: should be less than or equal to 1"),
    ("[training]\nmilestones = [0.8, 0.6]", "[training] milestones = [0.8, 0.6]: should increase"),
    ("[training]\ngamma = 0", "[training] gamma = 0: should be greater than 0"),
    ("[training]\nclip_norm = 0", "[training] clip_norm = 0: should be greater than 0"),
    ('[method]\nname = "distrael"', "[method] name = \"distrael\": unknown method; did you mean 'distreal'?"),
    ("[method]\nname = [1]", "[method] name = [1]: unknown method; known: "),
    ('[method]\nname = "fedavg"\nlut = "x"', "[method] lut: unknown key; the method has no options"),
    ("[method]\nlutt = 3", "[method] lutt: unknown key; did you mean 'lut'?"),
    ('[method]\nscale = "yes"', '[method] scale = "yes": should be a valid boolean'),
    ("[budget]\nmacs = -1", "[budget] macs = -1: should be greater than 0"),
    ("[budget]\nwatts = 1", "[budget] watts: unknown key; known: bytes, joules, macs, seconds"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_gets_one_line_that_says_where_and_what(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content)
    with pytest.raises(ExperimentError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ExperimentError) as caught:
        loads(f"[training]\nlr = [{'1, ' * 100}]")
    assert len(str(caught.value)) < 120


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"none.toml: cannot be read: No such file or directory"):
        load(tmp_path / "none.toml")
    with pytest.raises(ExperimentError, match=r"cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ExperimentError, match=r"x.toml: not a text file in UTF-8"):
        load(tmp_path / "x.toml")


def test_paths_in_a_file_begin_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "here" / "x.toml"
    path.write_text(
        '[data]\nfolder = "../data"\nsource = "own.parquet"\n'
        '[fleet]\navailability = "trace"\ntrace = "t.csv"\n[method]\nlut = "lut.json"\n'
    )
    monkeypatch.chdir(tmp_path / "here")
    x = load("x.toml", ["method.lut=./other.json"])
    assert x.data.folder == tmp_path / "data"
    assert x.data.source == str(tmp_path / "here" / "own.parquet")
    assert x.fleet.trace == tmp_path / "here" / "t.csv"
    assert dict(x.options)["lut"] == tmp_path / "here" / "other.json"

    monkeypatch.chdir(tmp_path / "elsewhere")
    assert loads(dumps(x)) == x
    again = load(path, ['data.folder="."', "data.source=digits"])
    assert again.data.folder == tmp_path / "elsewhere"
    assert again.data.source == "digits"
    assert dict(again.options)["lut"] == tmp_path / "here" / "lut.json"


def test_a_network_of_ones_own_is_found_again_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.toml").write_text('[network]\nname = "mine:net"\n')
    (tmp_path / "here" / "mine.py").touch()
    here = tmp_path / "here"

    monkeypatch.chdir(tmp_path / "elsewhere")
    beside_the_file = load(here / "x.toml")
    assert (beside_the_file.network.name, beside_the_file.network.folder) == ("mine:net", here)
    assert loads(dumps(beside_the_file)) == beside_the_file
    for name in ("network.name=../here/mine.py:net", f"network.name={here}/mine.py:net"):
        assert load("x.toml", [name]) == beside_the_file
    assert load("x.toml").network.folder is None
    assert load("x.toml", ["network.folder=../here"]) == beside_the_file
    with pytest.raises(
        ExperimentError, match=rf'--set .*: \[network\] name = "no.py:net": no such file in {tmp_path}'
    ):
        load("x.toml", ["network.name=no.py:net"])
    # What is named on the command line is looked for from there only.
    assert load(here / "x.toml", ["network.name=mine:net"]).network.folder is None

    monkeypatch.chdir(here)
    assert load(tmp_path / "elsewhere" / "x.toml") == beside_the_file
    assert load("x.toml", ["network.name=torch.nn:Identity"]).network.folder is None
    small = load("x.toml", ["network.name=lenet", "method.name=small", "method.network=mine:net"])
    assert small.network.folder == here


def test_the_uniform_table_is_no_path(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[method]\nlut = "uniform"\n')
    x = load(path)
    assert dict(x.options)["lut"] == "uniform"
    assert loads(dumps(x)) == x


def test_paths_in_a_text_stay_as_they_are() -> None:
    x = loads('[method]\nlut = "lut.json"')
    assert dict(x.options)["lut"] == Path("lut.json")
    assert override(x, ["data.folder=data"]).data.folder == Path("data")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("experiment.name=some-name", "some-name"),
        ('experiment.name = "some-name"', "some-name"),
        ("experiment.rounds=7", 7),
        ("training.lr=1e-2", 0.01),
        ("training.milestones=[]", ()),
        ("data.partition=dirichlet(0.1)", "dirichlet(0.1)"),
        ("data.image=a=b", "a=b"),
        ("data.image=a\nb=2", "a\nb=2"),
        ("data.image=1\nb=2", "1\nb=2"),
    ],
)
def test_an_override_wins(text: str, value: object) -> None:
    section, key = text.split("=", 1)[0].strip().split(".")
    x = loads('[experiment]\nname = "file"\nrounds = 3\n', [text])
    assert getattr(getattr(x, section), key) == value


def test_the_last_override_of_a_key_wins() -> None:
    assert loads("", ["experiment.seed=1", "experiment.seed=2"]).experiment.seed == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds=5", "--set rounds=5: should read section.key=value"),
        ("experiment.rounds", "--set experiment.rounds: should read section.key=value"),
        ("experiment.rounds=", "--set experiment.rounds=: should read section.key=value"),
        (
            "experiment.ronds=5",
            "--set experiment.ronds=5: [experiment] ronds: unknown key; did you mean 'rounds'?",
        ),
        ("experimnt.x=5", "--set experimnt.x=5: [experimnt]: unknown section; did you mean 'experiment'?"),
        ("fleet.ratio=x", '--set fleet.ratio=x: [fleet] ratio = "x": should be a valid number'),
        ("fleet.devices=2", "--set fleet.devices=2: [fleet] per_round = 10: more than the 2 devices"),
        (
            "method.name=fed",
            "--set method.name=fed: [method] name = \"fed\": unknown method; did you mean 'fedavg'?",
        ),
    ],
)
def test_a_bad_override_is_named(text: str, message: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        loads("[experiment]\nrounds = 5", [text], where="x.toml")
    assert str(caught.value) == message


def test_the_file_is_named_where_the_override_is_innocent() -> None:
    with pytest.raises(ExperimentError, match=r"^x.toml: \[experiment\] rounds = 0: "):
        loads("[experiment]\nrounds = 0", ["experiment.seed=5"], where="x.toml")


def test_another_method_does_not_inherit_options() -> None:
    x = loads('[method]\nlut = "lut.json"\nscale = false')
    assert override(x, ["method.name=fedavg"]).method == MethodSection("fedavg", METHODS["fedavg"].Options())
    assert override(x, ["method.name=distreal"]) == x
    back = override(x, ["method.scale=false", "method.name=federated-dropout"])
    assert dict(back.options) == {"scale": False}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_can_be_read(path: Path) -> None:
    assert loads(dumps(load(path))) == load(path)
