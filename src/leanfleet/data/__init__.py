"""Data sets, how they are dealt to the devices, and the mini-batches a device trains on."""

from __future__ import annotations

from leanfleet.data.batches import AUGMENTS, Batch, Batches, EvalBatches, eval_batches
from leanfleet.data.dataset import DataSet, Split
from leanfleet.data.partitions import parse_partition, partition
from leanfleet.data.sources import KNOWN, find, load
from leanfleet.data.stream import Stream

__all__ = [
    "AUGMENTS",
    "KNOWN",
    "Batch",
    "Batches",
    "DataSet",
    "EvalBatches",
    "Split",
    "Stream",
    "eval_batches",
    "find",
    "load",
    "parse_partition",
    "partition",
]
