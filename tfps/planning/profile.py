"""A profile: what a model's training costs on one machine, measured; a file of JSON.

All times are processor time in seconds, of one machine on which nothing had to be idle: what other
programs take on the same cores does not count. `docs/planning.md` describes every key.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from tfps import errors

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Bucket:
    """What is stored and travels together.

    Attributes:
      bytes: of the values.
      table: whether only rows of it travel in a step; with `LocalSteps` it travels whole.
      pushed: whether a step pushes it, or what became of its rows.
    """

    bytes: int
    table: bool
    pushed: bool


@dataclasses.dataclass(frozen=True)
class CodecCost:
    """What a codec costs for all that a step sends through it in one direction.

    Attributes:
      bytes: per bucket, of its payload, if the bucket travels whole.
      encode, decode: seconds per byte of values.
      state: per byte of values, bytes that the sender remembers from step to step; of differences,
        what a ps remembers for each worker, and the worker holds.
      row_bytes: of the rows of tables that a step sends, ids included.
    """

    bytes: tuple[int, ...]
    encode: float
    decode: float
    state: float
    row_bytes: float


@dataclasses.dataclass(frozen=True)
class Transport:
    """What it costs to bring bytes from one process to another, without the codecs.

    Attributes:
      send, receive: seconds per byte of the task that sends, and of the one that receives.
      worker_step, ps_step: seconds of a step on a task that are neither arithmetic nor transport.
    """

    send: float
    receive: float
    worker_step: float
    ps_step: float


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """What a step costs the chief, in seconds of its one interpreter.

    Attributes:
      call: a call to a worker, with its batches.
      report: to bring what a call came to to the chief, which happens in rounds, and for callbacks
        with hooks for batches.
      batch_bytes: that the chief sends with the batches of a step; 0 where workers read their data.
    """

    call: float
    report: float
    batch_bytes: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """What was measured of a model.

    Attributes:
      model: its name.
      cores: of the machine.
      examples: in a worker's batch.
      steps_per_call: steps in a call to a worker, as the model was compiled.
      compute: seconds of the forward and the backward pass of a batch.
      threads: how many cores that used at once.
      spread: standard deviation of `compute` from step to step, as a share of it.
      first_gradient: after which share of `compute` the first gradient may leave: 1 where XLA
        compiles the model, or gradients are clipped by the norm of all.
      update: seconds per byte of values in which the optimizer updates a bucket.
      add: seconds per byte in which a push is added to the sum of a round.
      slots: bytes of the optimizer's state per byte of trained values.
      buckets: on one ps.
      push, pull: text of a codec -> its cost.
      transport, dispatch: see the classes.
      about: versions, machine, and how long the measurement took.
    """

    model: str
    cores: int
    examples: int
    steps_per_call: int
    compute: float
    threads: float
    spread: float
    first_gradient: float
    update: float
    add: float
    slots: float
    buckets: tuple[Bucket, ...]
    push: Mapping[str, CodecCost]
    pull: Mapping[str, CodecCost]
    transport: Transport
    dispatch: Dispatch
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Bytes of all values."""
        return sum(b.bytes for b in self.buckets)

    @property
    def trained(self) -> int:
        """Bytes of the values that steps change."""
        return sum(b.bytes for b in self.buckets if b.pushed)

    def replace(self, **changes: Any) -> "Profile":
        """The profile with other values of some attributes."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The profile as JSON has it."""
        return {"version": VERSION, **dataclasses.asdict(self)}

    def write(self, path: str | os.PathLike) -> None:
        """Writes the profile to a file, whose folder is made."""
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_json(), file, indent=1)
            file.write("\n")

    @classmethod
    def from_json(cls, found: Any, source: str = "the profile") -> "Profile":
        """The profile of what JSON has.

        Args:
          found: of `to_json`.
          source: where it is from, for errors.

        Raises:
          ConfigError: it is of another version, or something is missing or no number.
        """
        version = found.get("version") if isinstance(found, dict) else None
        if version != VERSION:
            raise errors.ConfigError(
                f"{source} has version {version!r}, but this tfps reads version {VERSION}; measure "
                "it anew, with --profile of a binary"
            )
        values = {key: value for key, value in found.items() if key != "version"}
        try:
            profile = cls(
                **{
                    **values,
                    "buckets": tuple(Bucket(**b) for b in values["buckets"]),
                    "push": _costs(values["push"]),
                    "pull": _costs(values["pull"]),
                    "transport": Transport(**values["transport"]),
                    "dispatch": Dispatch(**values["dispatch"]),
                }
            )
            _check(dataclasses.asdict(profile), "")
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise errors.ConfigError(
                f"{source} is no whole profile ({type(e).__name__}: {e}); measure it anew, with "
                "--profile of a binary"
            ) from e
        return profile

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Profile":
        """Reads a file of `write`.

        Raises:
          ConfigError: there is no such file, or it is no profile.
        """
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
        except OSError as e:
            raise errors.ConfigError(
                f"profile={os.fspath(path)!r} cannot be read ({e.strerror}); write it with "
                "--profile of a binary, such as python -m models.gpt --profile=profile.json"
            ) from e
        except ValueError as e:
            raise errors.ConfigError(f"profile={os.fspath(path)!r} is no JSON: {e}") from e
        return cls.from_json(found, f"profile={os.fspath(path)!r}")


def _costs(found: Mapping[str, Any]) -> dict[str, CodecCost]:
    costs = {
        name: CodecCost(**{**one, "bytes": tuple(one["bytes"])}) for name, one in found.items()
    }
    if "identity" not in costs:
        raise ValueError("there is no codec identity")
    return costs


def _check(value: Any, name: str) -> None:
    """Raises `ValueError` for a number that is negative or not finite."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key != "about":
                _check(one, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        for one in value:
            _check(one, name)
    elif isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value!r} is not at least 0")
