"""What came out: tables and curves, read from run records only."""

from leanfleet.report.plots import can_draw, draw
from leanfleet.report.records import Group, Record, group, read
from leanfleet.report.sentence import sentence
from leanfleet.report.tables import Tables, render, summarise

__all__ = [
    "Group",
    "Record",
    "Tables",
    "can_draw",
    "draw",
    "group",
    "read",
    "render",
    "sentence",
    "summarise",
]
