"""Codecs from text, for flags and configuration files."""

import dataclasses

from tfps import errors, parsing
from tfps.compression.auto import Auto
from tfps.compression.base import Codec, Identity
from tfps.compression.casts import BFloat16, Float16
from tfps.compression.dgc import DGC
from tfps.compression.difference import Difference
from tfps.compression.powersgd import PowerSGD
from tfps.compression.quantize import Int8
from tfps.compression.signs import OneBit, Ternary, TwoBit
from tfps.compression.sparsify import RandomK, TopK

# Attributes that all codecs have, and that are given by name only.
_SHARED = ("min_bytes", "feedback")

CODECS: dict[str, type[Codec]] = {
    "identity": Identity,
    "none": Identity,
    "float16": Float16,
    "bfloat16": BFloat16,
    "int8": Int8,
    "ternary": Ternary,
    "onebit": OneBit,
    "twobit": TwoBit,
    "topk": TopK,
    "randomk": RandomK,
    "dgc": DGC,
    "powersgd": PowerSGD,
    "difference": Difference,
    "auto": Auto,
}


def parse(text: str) -> Codec:
    """The codec that a text such as "dgc:0.01,momentum=0.9,warmup=100" names.

    Args:
      text: A name, then a colon and parameters separated by commas. Parameters follow the order
        of the codec's attributes until a parameter is given by name. What "difference:" precedes
        is another codec's text, such as "difference:onebit,block=128,refresh=500"; parameters of
        the difference are given by name.

    Raises:
      ConfigError: there is no such codec, or the codec takes no such parameters.
    """
    name, colon, rest = text.strip().partition(":")
    if name.strip().lower() == "difference" and colon:
        return _difference(text, rest)
    return parsing.parse(text, CODECS, "codec", shared=_SHARED)


def _difference(text: str, rest: str) -> Difference:
    """The difference of a codec; its own parameters are those that the codec cannot have."""
    own = {f.name for f in dataclasses.fields(Difference) if f.name not in ("codec", *_SHARED)}
    parts = rest.split(",")
    mine = [p for p in parts if p.partition("=")[0].strip() in own]
    first, *others = [p for p in parts if p not in mine] or [""]
    inner = ",".join([first, *others]) if ":" in first else ":".join([first, ",".join(others)])
    codec = parse(inner.rstrip(":"))
    given = {}
    for part in mine:
        key, _, value = part.partition("=")
        given[key.strip()] = parsing.value_of(value.strip())
    try:
        return Difference(codec, **given)
    except errors.ConfigError as e:
        raise errors.ConfigError(f"codec {text!r}: {e}") from None
