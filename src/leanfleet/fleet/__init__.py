"""Devices: what they can spend over time, the clock that reckons it, and the pacer that stays within it."""
