"""The small experiment that tests of the engine run."""

from __future__ import annotations

from leanfleet.experiment import Experiment, loads

TOML = """
[experiment]
name = "tiny"
rounds = 4
[network]
name = "digits-cnn-small"
[fleet]
devices = 10
per_round = 4
[training]
momentum = 0.5
batch_size = 16
"""


def experiment(*overrides: str) -> Experiment:
    return loads(TOML, overrides)
