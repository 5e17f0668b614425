"""Writes a Flower app for an experiment, and the keys and certificates of a fleet to try it with."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

from leanfleet.engines.flower import LUT, check
from leanfleet.engines.flower.terms import Terms
from leanfleet.errors import StorageError, UserError
from leanfleet.experiment import Experiment, dumps, override
from leanfleet.storage import write_bytes, write_json, write_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey as PrivateKey
    from cryptography.x509 import Certificate, ExtensionType

_MODULE = "fleet_app"
_CODE = '''"""The experiment beside this file, as a Flower app."""

from pathlib import Path

from leanfleet.engines import flower

client = flower.client_app(Path(__file__).parent)
server = flower.server_app(Path(__file__).parent)
'''

# Flower leaves a folder of this name out of what it sends around.
_HOME = ".flwr"
_RUNTIME_PORT = 9094
_AUTHORITY, _SERVER, _DAYS = "leanfleet CA", "leanfleet SuperLink", 365
ENVIRONMENT = "environment.sh"
"""The file of an app that sets what every command wants."""
_SETTINGS = (
    "export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1",
    "export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
)


def write_app(experiment: Experiment, folder: Path, runs: Path = Path("runs")) -> None:
    """Write a Flower app: `pyproject.toml`, `experiment.toml`, its code, and the table if the experiment names one.

    Args:
        experiment: What the fleet is to run.
        folder: Where to; it must not hold another app.
        runs: Where the server is to keep its records.

    Raises:
        UserError: The experiment cannot live behind a SuperLink, or the folder is in use.
        StorageError: The disk refused.
    """
    check(experiment)
    if (folder / "pyproject.toml").exists():
        raise UserError(f"{folder}: there is an app already; take another folder with --output")
    name = experiment.experiment.name
    # Keys of the run configuration are checked against this list, so all must be there.
    terms = {key.replace("_", "-"): value for key, value in vars(Terms(runs=str(runs))).items()}
    components = {"serverapp": f"{_MODULE}:server", "clientapp": f"{_MODULE}:client"}
    project = {
        "name": name.lower().replace("_", "-").replace(".", "-").strip("-"),
        "version": "1.0.0",
        "description": f"{experiment.method.name} on a real fleet",
        "license": "Apache-2.0",
        # Flower would install them afresh for every run, PyTorch with CUDA; they are where Flower is.
        "dependencies": [],
    }
    app = {"publisher": "leanfleet", "components": components, "config": terms}
    _make(folder)
    lut = getattr(experiment.options, "lut", None)
    if isinstance(lut, Path):
        # Of all files, a Flower app takes along only text.
        write_json(folder / LUT, {"base64": base64.b64encode(lut.read_bytes()).decode()})
        experiment = override(experiment, [f"method.lut={json.dumps(LUT)}"])
    own = experiment.network.folder
    if own is not None:
        module = f"{experiment.network.name.partition(':')[0]}.py"
        if not (own / module).is_file():
            raise UserError(
                f"[network] name = '{experiment.network.name}': an app takes along one file, {module}"
            )
        write_text(folder / module, (own / module).read_text(encoding="utf-8"))
        network = experiment.network.model_copy(update={"folder": None})
        experiment = replace(experiment, network=network)
    write_text(folder / "experiment.toml", dumps(experiment))
    write_text(folder / f"{_MODULE}.py", _CODE)
    write_text(folder / "pyproject.toml", tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}}))


def commands(folder: Path, nodes: int, host: str = "127.0.0.1", port: int = 8000) -> list[str]:
    """Return the commands for a shell that start a fleet for the app in a folder, in the order of their use."""
    folder = folder.resolve()
    app, keys, database = (
        shlex.quote(str(p)) for p in (folder, folder / "keys", folder / _HOME / "superlink.db")
    )
    tls = f"--ssl-ca-certfile {keys}/ca.crt --ssl-certfile {keys}/server.crt --ssl-keyfile {keys}/server.key"
    link = f"flower-superlink --host {host} --port {port} {tls} --enable-supernode-auth --database {database}"
    register = [f"flwr supernode register {keys}/node-{i}.pub fleet" for i in range(nodes)]
    start = [
        f"flower-supernode --superlink {host}:{port} --root-certificates {keys}/ca.crt "
        f"--auth-supernode-private-key {keys}/node-{i} --port {_RUNTIME_PORT + i} --node-config 'partition-id={i}'"
        for i in range(nodes)
    ]
    # In every line: each may be typed into a terminal of its own.
    settings = f". {shlex.quote(str(folder / ENVIRONMENT))}; "
    return [settings + line for line in (link, *register, *start, f"flwr run {app} fleet --stream")]


def write_keys(folder: Path, nodes: int, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Write a certificate authority, the server's certificate and a key pair a node, to try a fleet with.

    Args:
        folder: The app's; keys go to `keys`, the connection of the `flwr` command to `.flwr`, and what all commands are
            to be started with to `environment.sh`.
        nodes: How many nodes.
        host: Name or address of the SuperLink.
        port: Its port.

    Raises:
        StorageError: The disk refused.
    """
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = folder / "keys"
    _make(keys)
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    root, own = _certificates(authority, server, host)
    write_bytes(keys / "ca.crt", root.public_bytes(s.Encoding.PEM))
    write_bytes(keys / "server.crt", own.public_bytes(s.Encoding.PEM))
    secret = server.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    _write_secret(keys / "server.key", secret)
    for i in range(nodes):
        pair = ec.generate_private_key(ec.SECP384R1())
        secret = pair.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption())
        _write_secret(keys / f"node-{i}", secret)
        public = pair.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH)
        write_bytes(keys / f"node-{i}.pub", public + b"\n")
    _make(folder / _HOME)
    home = f"export FLWR_HOME={shlex.quote(str((folder / _HOME).resolve()))}"
    write_text(folder / ENVIRONMENT, "\n".join([*_SETTINGS, home, ""]))
    link = {"address": f"{host}:{port}", "root-certificates": str((keys / "ca.crt").resolve())}
    write_text(
        folder / _HOME / "config.toml", tomli_w.dumps({"superlink": {"default": "fleet", "fleet": link}})
    )


def _certificates(authority: PrivateKey, server: PrivateKey, host: str) -> tuple[Certificate, Certificate]:
    """Return the certificates of an authority and of a server at a host, valid for a year."""
    from cryptography import x509

    try:
        named: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        named = x509.DNSName(host)
    local = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    names = x509.SubjectAlternativeName([named, *(name for name in local if name != named)])
    root = _signed(_AUTHORITY, authority, authority, x509.BasicConstraints(ca=True, path_length=0))
    # Names are looked for among the alternatives; that of the subject may not be long.
    return root, _signed(_SERVER, server, authority, names)


def _signed(subject: str, key: PrivateKey, authority: PrivateKey, extension: ExtensionType) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)
    name, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (subject, _AUTHORITY))
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A device's clock may be a little behind.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(extension, critical=subject == _AUTHORITY)
        .sign(authority, hashes.SHA384())
    )


def _write_secret(path: Path, secret: bytes) -> None:
    # Never readable by others, not even for a moment; hence not by way of a temporary file.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secret)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}") from error
