"""What came out: tables and curves, read from run records only."""

from leanfleet.report.plots import can_draw, draw
from leanfleet.report.records import Group, Record, group, read
from leanfleet.report.score import Ranking, rank, render_ranking
from leanfleet.report.score_plot import draw_ranking
from leanfleet.report.sentence import sentence
from leanfleet.report.tables import Tables, render, summarise

__all__ = [
    "Group",
    "Ranking",
    "Record",
    "Tables",
    "can_draw",
    "draw",
    "draw_ranking",
    "group",
    "rank",
    "read",
    "render",
    "render_ranking",
    "sentence",
    "summarise",
]
