"""A real SuperLink and real SuperNodes on loopback, TLS and node authentication on, for tests."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from leanfleet.engines.flower.writing import ENVIRONMENT, commands, write_app, write_keys
from leanfleet.experiment import loads


def wait_for(what: Callable[[], object], seconds: float = 120.0) -> object:
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s in vain for {what.__name__}")
        time.sleep(0.5)
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class RealFleet:
    """Writes an app, starts what `leanfleet fleet` prints, and ends it all."""

    def __init__(self, folder: Path, experiment: str, nodes: int) -> None:
        self.app, self.runs, self.nodes, self.port = folder / "app", folder / "runs", nodes, free_port()
        write_app(loads(experiment), self.app, self.runs)
        write_keys(self.app, nodes, port=self.port)
        lines = commands(self.app, nodes, port=self.port)
        exports = (self.app / ENVIRONMENT).read_text().splitlines()
        exports = dict(word.split("=", 1) for line in exports for word in shlex.split(line)[1:])
        assert all(line.startswith(f". {self.app / ENVIRONMENT}; ") for line in lines)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = {**os.environ, **exports, "PATH": path, "OMP_NUM_THREADS": "1"}
        self._lines, self._folder = [line.partition("; ")[2] for line in lines], folder
        self._running: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> RealFleet:
        try:
            self.start_link()
            for line in self._lines[1 : 1 + self.nodes]:
                self.flwr(line)
            for i in range(self.nodes):
                self.start_node(i)
        except BaseException:
            self.close()
            raise
        return self

    def start_link(self) -> None:
        self._start("link", self._lines[0])

        def the_superlink():
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.port)) == 0

        wait_for(the_superlink, 60)

    def start_node(self, i: int, **config: object) -> None:
        line = self._lines[1 + self.nodes + i]
        more = "".join(f" {key.replace('_', '-')}={json.dumps(value)}" for key, value in config.items())
        # Every node's own API needs a port too.
        line = line.replace(f"--port {9094 + i}", f"--port {free_port()}").replace(f"={i}'", f"={i}{more}'")
        self._start(f"node-{i}", line)

    def start_stranger(self, name: str, key: Path, authority: Path) -> None:
        """Start node 0 once more, with another key or another idea of whom to believe."""
        line = self._lines[1 + self.nodes].replace(str(self.app / "keys" / "node-0"), str(key))
        line = line.replace(str(self.app / "keys" / "ca.crt"), str(authority))
        self._start(name, line.replace("--port 9094", f"--port {free_port()}"))

    def ended(self, name: str) -> bool:
        return self._running[name].poll() is not None

    def run(self, config: str = "") -> None:
        self.flwr(f"flwr run {self.app} fleet" + (f" --run-config {shlex.quote(config)}" if config else ""))

    def flwr(self, line: str) -> str:
        done = subprocess.run(shlex.split(line), env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    def list(self) -> list[dict]:
        """Return what Flower knows of its runs, the latest first."""
        return json.loads(self.flwr("flwr list fleet --format json"))["runs"]

    def last_log(self) -> str:
        return self.flwr(f"flwr log {self.list()[0]['run-id']} fleet --show")[-5000:]

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a SuperLink or SuperNode and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._running[name].pid, number)
        if number == signal.SIGKILL:
            self._running.pop(name).wait()

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def close(self) -> None:
        for name in list(self._running):
            self.signal(name, signal.SIGKILL)

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, name: str, line: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                shlex.split(line),
                env=self.env,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
