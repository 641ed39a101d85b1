"""Texts with units: bandwidths, times, shares of slow workers."""

import re

from tfps import errors

_BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER = r"(\d+(?:\.\d*)?(?:e-?\d+)?)"


def bandwidth(text: str, name: str = "bandwidth") -> float:
    """Bytes per second of a text such as "100mbit"; infinite for "none".

    Args:
      text: a number with kbit, mbit or gbit.
      name: of the argument, for errors.

    Raises:
      ConfigError: it is none.
    """
    if text.strip().lower() == "none":
        return float("inf")
    match = re.fullmatch(rf"{_NUMBER}\s*(kbit|mbit|gbit)", text.strip().lower())
    if not match or not float(match[1]):
        raise errors.ConfigError(
            f"{name}={text!r} is not a number above 0 with kbit, mbit or gbit, such as 100mbit; "
            "give one, or none for a link without a limit"
        )
    return float(match[1]) * _BITS[match[2]] / 8


def both_ways(text: str, name: str = "bandwidth") -> tuple[float, float]:
    """(down, up) in bytes per second of a text such as "50mbit/10mbit", or "1gbit" for both.

    Raises:
      ConfigError: it is none.
    """
    down, slash, up = text.partition("/")
    return bandwidth(down, name), bandwidth(up if slash else down, name)


def seconds(text: str, name: str = "latency") -> float:
    """Seconds of a text such as "0.2ms" or "0".

    Raises:
      ConfigError: it is none.
    """
    match = re.fullmatch(rf"{_NUMBER}\s*(us|ms|s)", text.strip().lower())
    if match:
        return float(match[1]) * _SECONDS[match[2]]
    if re.fullmatch(r"0(\.0*)?", text.strip()):
        return 0.0
    raise errors.ConfigError(
        f"{name}={text!r} is not a number with us, ms or s; give one, such as 0.2ms"
    )


def slow(text: str) -> tuple[float, float]:
    """(share, factor) of a text such as "0.1@10x": a tenth of the workers takes ten times as long.

    Raises:
      ConfigError: it is none, the share is not within 0 and 1, or the factor is below 1.
    """
    match = re.fullmatch(rf"{_NUMBER}@{_NUMBER}x?", text.strip().lower())
    if not match or float(match[1]) > 1 or float(match[2]) < 1:
        raise errors.ConfigError(
            f"slow={text!r} is not SHARE@FACTORx with a share of at most 1 and a factor of at "
            "least 1; write 0.1@10x for a tenth of the workers that takes ten times as long"
        )
    return float(match[1]), float(match[2])
