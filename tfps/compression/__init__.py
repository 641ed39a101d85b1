"""Codecs: what gradients and parameters are turned into to cross the network.

May import: errors, parsing.

A codec is an immutable value and a pair of pure functions; what it remembers between steps goes in
and comes out, so that a step that carries it can be compiled, and moved.
"""

from tfps.compression.base import Codec, Identity
from tfps.compression.casts import BFloat16, Float16
from tfps.compression.dgc import DGC
from tfps.compression.feedback import ErrorFeedback, with_feedback
from tfps.compression.parse import parse
from tfps.compression.powersgd import PowerSGD
from tfps.compression.quantize import Int8
from tfps.compression.signs import OneBit, Ternary
from tfps.compression.sparsify import RandomK, TopK

__all__ = [
    "DGC",
    "BFloat16",
    "Codec",
    "ErrorFeedback",
    "Float16",
    "Identity",
    "Int8",
    "OneBit",
    "PowerSGD",
    "RandomK",
    "Ternary",
    "TopK",
    "parse",
    "with_feedback",
]
