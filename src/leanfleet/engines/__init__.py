"""Engines: where a fleet lives."""

from leanfleet.engines.local import Progress, default_workers, resume, run

__all__ = ["Progress", "default_workers", "resume", "run"]
