"""Codecs from text, for flags and configuration files."""

from tfps import parsing
from tfps.compression.base import Codec, Identity
from tfps.compression.casts import BFloat16, Float16
from tfps.compression.dgc import DGC
from tfps.compression.powersgd import PowerSGD
from tfps.compression.quantize import Int8
from tfps.compression.signs import OneBit, Ternary
from tfps.compression.sparsify import RandomK, TopK

CODECS: dict[str, type[Codec]] = {
    "identity": Identity,
    "none": Identity,
    "float16": Float16,
    "bfloat16": BFloat16,
    "int8": Int8,
    "ternary": Ternary,
    "onebit": OneBit,
    "topk": TopK,
    "randomk": RandomK,
    "dgc": DGC,
    "powersgd": PowerSGD,
}


def parse(text: str) -> Codec:
    """The codec that a text such as "dgc:0.01,momentum=0.9,warmup=100" names.

    Args:
      text: A name, then a colon and parameters separated by commas. Parameters follow the order
        of the codec's attributes until a parameter is given by name.

    Raises:
      ConfigError: there is no such codec, or the codec takes no such parameters.
    """
    return parsing.parse(text, CODECS, "codec", shared=("min_bytes", "feedback"))
