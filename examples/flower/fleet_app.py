"""The experiment beside this file, as a Flower app."""

from pathlib import Path

from leanfleet.engines import flower

client = flower.client_app(Path(__file__).parent)
server = flower.server_app(Path(__file__).parent)
