"""Messages as bytes."""

from leanfleet.wire.dense import Expected, decode, describe, encode
from leanfleet.wire.message import Message, Scalar

__all__ = ["Expected", "Message", "Scalar", "decode", "describe", "encode"]
