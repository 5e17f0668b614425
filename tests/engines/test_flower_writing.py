"""The app that is written for an experiment, and the keys to try it."""

from __future__ import annotations

import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from leanfleet.engines.flower import client_app, experiment_of, server_app
from leanfleet.engines.flower.terms import Terms
from leanfleet.engines.flower.writing import commands, write_app, write_keys
from leanfleet.engines.job import federated_job
from leanfleet.errors import ExperimentError, UserError
from leanfleet.experiment import dumps, load, override
from leanfleet.subnet.lut import Lut
from tiny_experiment import experiment

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower"


def test_the_app_holds_the_experiment_and_all_terms(tmp_path):
    what = experiment()
    write_app(what, tmp_path / "app", tmp_path / "runs")
    assert dumps(experiment_of(tmp_path / "app")) == dumps(what)
    config = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert Terms.of(config) == Terms(runs=str(tmp_path / "runs"))


def test_flower_can_load_both_halves(tmp_path):
    write_app(experiment(), tmp_path)
    code = "import fleet_app; print(type(fleet_app.client).__name__, type(fleet_app.server).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "ClientApp ServerApp", done.stderr


# Flower's own, of a package that it uses.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_flower_accepts_the_app_and_packs_all_that_a_device_needs(tmp_path):
    from zipfile import ZipFile

    from flwr.cli.build import build_fab_from_disk

    job = federated_job(experiment())
    Lut.uniform(job.method.plan, levels=5).save(tmp_path / "d.lut")
    write_app(override(job.experiment, [f'method.lut="{tmp_path}/d.lut"']), tmp_path / "app")
    write_keys(tmp_path / "app", 1)
    (tmp_path / "app.fab").write_bytes(build_fab_from_disk(tmp_path / "app"))
    with ZipFile(tmp_path / "app.fab") as packed:
        names = set(packed.namelist())
        packed.extractall(tmp_path / "device")
    assert {"pyproject.toml", "experiment.toml", "fleet_app.py", "lut.json"} <= names
    assert not [name for name in names if "keys" in name or "config.toml" in name], "secrets stay at home"
    assert len(federated_job(experiment_of(tmp_path / "device")).method.lut.rows) == 5


@pytest.mark.parametrize("method", ["sl-basic", "splitfed"])
def test_what_needs_messages_within_a_round_is_refused_in_one_line(tmp_path, method):
    with pytest.raises(ExperimentError, match=f"'{method}': needs messages within a round"):
        write_app(experiment(f"method.name={method}"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_client_of_adasplit_is_another_app(tmp_path):
    write_app(experiment("method.name=adasplit", "method.cut=7", "method.selection_window=5"), tmp_path)
    assert client_app(tmp_path).__class__.__name__ == "ClientApp"
    assert server_app(tmp_path).__class__.__name__ == "ServerApp"


def test_an_app_is_never_overwritten(tmp_path):
    write_app(experiment(), tmp_path)
    with pytest.raises(UserError, match="there is an app already"):
        write_app(experiment(), tmp_path)


def test_secrets_are_for_their_owner_only(tmp_path):
    write_keys(tmp_path, 2, host="fleet.example.org")
    secrets = [tmp_path / "keys" / name for name in ("server.key", "node-0", "node-1")]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate((tmp_path / "keys" / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fleet.example.org", "localhost"]


def test_nothing_is_started_with_telemetry_on(tmp_path):
    write_keys(tmp_path, 2)
    settings = (tmp_path / "environment.sh").read_text()
    for name in (
        "TELEMETRY_ENABLED=0",
        "DISABLE_UPDATE_CHECK=1",
        "DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
    ):
        assert f"FLWR_{name}" in settings
    lines = commands(tmp_path, 2)
    assert all(line.startswith(f". {tmp_path}/environment.sh; ") for line in lines)
    assert "--insecure" not in "".join(lines)
    assert sum("--enable-supernode-auth" in line for line in lines) == 1


def test_the_example_is_what_the_command_writes_today(tmp_path):
    from leanfleet.experiment import load

    write_app(load(EXAMPLE / "experiment.toml"), tmp_path)
    for name in ("pyproject.toml", "experiment.toml", "fleet_app.py"):
        assert (EXAMPLE / name).read_text() == (tmp_path / name).read_text(), f"write {name} anew"


def test_a_shell_reads_commands_and_settings_wherever_the_app_is(tmp_path):
    folder = tmp_path / "my fleet"
    write_keys(folder, 1)
    shown = 'flower-superlink() { printf \'%s\\n\' "$FLWR_HOME" "$@"; }; '
    done = subprocess.run(
        ["bash", "-c", shown + commands(folder, 1)[0]], capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    assert words[0] == f"{folder}/.flwr"
    assert f"{folder}/keys/server.key" in words


def test_a_network_of_ones_own_comes_with_the_app(tmp_path):
    code = "from leanfleet.nets import build\n\n\ndef net():\n    return build('digits-cnn-small')\n"
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "x.toml").write_text(
        dumps(override(experiment(), ["network.name=digits-cnn"])).replace('"digits-cnn"', '"mine.py:net"')
    )
    app = tmp_path / "app"
    write_app(load(tmp_path / "x.toml"), app)
    (tmp_path / "mine.py").unlink()
    found = experiment_of(app).network
    assert (found.name, found.folder) == ("mine:net", app)


def test_tables_of_an_app_do_not_pile_up(tmp_path):
    job = federated_job(experiment())
    Lut.uniform(job.method.plan, levels=5).save(tmp_path / "d.lut")
    write_app(override(job.experiment, [f'method.lut="{tmp_path}/d.lut"']), tmp_path / "app")
    code = f"""
from pathlib import Path
from leanfleet.engines.flower import experiment_of
print(experiment_of(Path({str(tmp_path / "app")!r})).options.lut)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    table = Path(done.stdout.strip())
    assert table.name == "table.lut"
    assert not table.parent.exists()
