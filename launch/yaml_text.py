"""Data as YAML text, so that manifests can be read; the launcher needs no package for it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# What YAML 1.1 takes for a string without quotes, and what looks like one but is none.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_NOT_STRINGS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def documents(items: Sequence[Mapping[str, Any]]) -> str:
    """Returns one YAML document for each item."""
    return "".join(f"---\n{text(item)}" for item in items)


def text(value: Any) -> str:
    """Returns YAML for nested mappings and sequences of strings, numbers, booleans and None.

    Raises:
      TypeError: the data has something else in it.
    """
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [line for key, item in value.items() for line in _entry(f"{_scalar(key)}:", item)]
    if isinstance(value, list | tuple) and value and not _in_a_row(value):
        return [line for item in value for line in _item(item)]
    return [_scalar(value)]


def _entry(head: str, item: Any) -> list[str]:
    """The lines of a mapping's entry: what is nested stands below its key."""
    if isinstance(item, Mapping | list | tuple) and item and not _in_a_row(item):
        return [head, *(f"  {line}" for line in _lines(item))]
    return [f"{head} {_scalar(item)}"]


def _in_a_row(value: Any) -> bool:
    """Whether a value is a list of numbers, which is written in one line."""
    return isinstance(value, list | tuple) and all(type(item) is int for item in value)


def _item(item: Any) -> list[str]:
    """The lines of a sequence's item: the first stands behind the dash."""
    first, *others = _lines(item)
    return [f"- {first}", *(f"  {line}" for line in others)]


def _scalar(value: Any) -> str:
    if isinstance(value, Mapping) and not value:
        return "{}"
    if _in_a_row(value):
        return f"[{', '.join(map(str, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is a {type(value).__name__}, which manifests do not have")
    if _PLAIN.fullmatch(value) and value.lower() not in _NOT_STRINGS:
        return value
    if value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    return f'"{"".join(_character(c) for c in value)}"'


def _character(c: str) -> str:
    """A character within double quotes, in which alone YAML has escapes."""
    if c in '"\\':
        return f"\\{c}"
    return c if c.isprintable() else f"\\U{ord(c):08x}"
