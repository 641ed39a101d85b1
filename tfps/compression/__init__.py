"""Codecs: what gradients and parameters are turned into to cross the network.

May import: errors, parsing.

A codec is an immutable value and a pair of pure functions. What a codec remembers between steps
goes in and comes out, so that a step that carries this state can be compiled, and moved to another
worker. `base.Codec` says which members an author of a codec writes, and who calls them.
"""

from tfps.compression.adapted import adapted, is_codec
from tfps.compression.auto import Auto
from tfps.compression.base import Codec, Identity, PlainCodec
from tfps.compression.casts import BFloat16, Float16
from tfps.compression.dgc import DGC
from tfps.compression.difference import Difference
from tfps.compression.feedback import ErrorFeedback, with_feedback
from tfps.compression.parse import parse
from tfps.compression.powersgd import PowerSGD
from tfps.compression.quantize import Int8
from tfps.compression.signs import OneBit, Ternary, TwoBit
from tfps.compression.sparsify import RandomK, TopK

__all__ = [
    "DGC",
    "Auto",
    "BFloat16",
    "Codec",
    "Difference",
    "ErrorFeedback",
    "Float16",
    "Identity",
    "Int8",
    "OneBit",
    "PlainCodec",
    "PowerSGD",
    "RandomK",
    "Ternary",
    "TopK",
    "TwoBit",
    "adapted",
    "is_codec",
    "parse",
    "with_feedback",
]
