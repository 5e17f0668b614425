"""What came out: tables and curves, read from run records only."""

from leanfleet.report.plots import draw
from leanfleet.report.records import Group, Record, group, read
from leanfleet.report.sentence import sentence
from leanfleet.report.tables import Tables, render, summarise

__all__ = ["Group", "Record", "Tables", "draw", "group", "read", "render", "sentence", "summarise"]
