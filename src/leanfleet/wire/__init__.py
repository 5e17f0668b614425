"""Messages as bytes: dense, sparse, quantised; and the compressors that decide what of a tensor is sent."""

from leanfleet.wire.compressors import Compressor, Identity, Qsgd, RandomK, Sign, TopK, kept_count
from leanfleet.wire.dense import Expected, decode, describe, encode
from leanfleet.wire.layouts import layout_bytes
from leanfleet.wire.message import Message, Scalar
from leanfleet.wire.packing import PACKED, pack, unpack
from leanfleet.wire.payload import Levels, Payload, Values, gather, sparse, whole

__all__ = [
    "PACKED",
    "Compressor",
    "Expected",
    "Identity",
    "Levels",
    "Message",
    "Payload",
    "Qsgd",
    "RandomK",
    "Scalar",
    "Sign",
    "TopK",
    "Values",
    "decode",
    "describe",
    "encode",
    "gather",
    "kept_count",
    "layout_bytes",
    "pack",
    "sparse",
    "unpack",
    "whole",
]
