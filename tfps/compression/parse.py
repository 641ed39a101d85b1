"""Codecs from text, for flags and configuration files."""

import ast
import dataclasses

from tfps import errors
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


def _parameters(cls: type[Codec]) -> list[str]:
    # What is the codec's own comes first and may go without its name.
    names = [f.name for f in dataclasses.fields(cls)]
    return [n for n in names if n not in ("min_bytes", "feedback")] + ["min_bytes", "feedback"]


def _usage() -> str:
    def parameter(field):
        required = field.default is dataclasses.MISSING
        return field.name if required else f"{field.name}={field.default}"

    usages = []
    for name, cls in CODECS.items():
        fields = {f.name: f for f in dataclasses.fields(cls)}
        own = ",".join(parameter(fields[n]) for n in _parameters(cls)[:-2])
        usages.append(f"{name}:{own}" if own else name)
    return f"{' | '.join(usages)} (each also with min_bytes=, feedback=)"


def _value(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse(text: str) -> Codec:
    """The codec that a text such as "dgc:0.01,momentum=0.9,warmup=100" names.

    Args:
      text: a name, and after a colon its parameters, separated by commas. They
        follow the order of the codec's attributes until one is given by name.

    Raises:
      ConfigError: there is no such codec, or it takes no such parameters.
    """
    name, colon, rest = text.strip().partition(":")
    try:
        cls = CODECS[name.strip().lower()]
        parameters = _parameters(cls)
        given: dict[str, object] = {}
        for i, part in enumerate(rest.split(",") if colon else []):
            key, named, value = part.rpartition("=")
            key = key.strip() if named else parameters[:-2][i]
            if key not in parameters or key in given:
                raise KeyError(key)
            given[key] = _value(value.strip())
        return cls(**given)
    except errors.ConfigError as e:
        raise errors.ConfigError(f"codec {text!r}: {e}; there are {_usage()}") from None
    except (KeyError, IndexError, TypeError):
        raise errors.ConfigError(
            f"codec {text!r} is unknown, or has parameters that it does not take; "
            f"there are {_usage()}"
        ) from None
