"""Objects from texts such as "topk:0.01", for flags and configuration files."""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

from tfps import errors


def parse(text: str, kinds: Mapping[str, type], what: str, shared: tuple[str, ...] = ()) -> Any:
    """Makes the object that a text names.

    Args:
      text: a name, and after a colon parameters, separated by commas. Parameters follow the order
        of the class's attributes until a parameter is given by name.
      kinds: name -> dataclass.
      what: the kind of object, for errors.
      shared: attributes that all dataclasses have, and that are given by name only.

    Raises:
      ConfigError: no object has this name, or it takes no such parameters.
    """
    name, colon, rest = text.strip().partition(":")
    try:
        cls = kinds[name.strip().lower()]
        own = _own(cls, shared)
        given: dict[str, object] = {}
        for i, part in enumerate(rest.split(",") if colon else []):
            key, named, value = part.rpartition("=")
            key = key.strip() if named else own[i]
            if key not in (*own, *shared) or key in given:
                raise KeyError(key)
            given[key] = value_of(value.strip())
        return cls(**given)
    except errors.ConfigError as e:
        usage = _usage(kinds, shared)
        raise errors.ConfigError(f"{what} {text!r}: {e}; there are {usage}") from None
    except (KeyError, IndexError, TypeError):
        raise errors.ConfigError(
            f"{what} {text!r} is unknown, or has parameters that it does not take; "
            f"there are {_usage(kinds, shared)}"
        ) from None


def _own(cls: type, shared: tuple[str, ...]) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.name not in shared]


def _usage(kinds: Mapping[str, type], shared: tuple[str, ...]) -> str:
    def parameter(field):
        required = field.default is dataclasses.MISSING
        return field.name if required else f"{field.name}={field.default}"

    usages = []
    for name, cls in kinds.items():
        fields = {f.name: f for f in dataclasses.fields(cls)}
        own = ",".join(parameter(fields[n]) for n in _own(cls, shared))
        usages.append(f"{name}:{own}" if own else name)
    also = f" (each also with {', '.join(f'{n}=' for n in shared)})" if shared else ""
    return " | ".join(usages) + also


def value_of(text: str) -> Any:
    """The Python value that a parameter's text stands for; the text itself if for no other."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)
