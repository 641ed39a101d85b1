"""What the chief adds to a snapshot: a tree of values, as JSON and a checkpoint of its arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfps.store.placement import Shard
from tfps.store.server_state import AggregationState, OptimizerState
from tfps.store.snapshot_reading import SavedServers
from tfps.training.exported_state import ChiefState, Exported, OpenEpoch
from tfps.training.feeds import FeedPosition
from tfps.training.server_side import SideState
from tfps.worker.tally import Tally
from tfps.worker.worker_step import WorkerMemory

Arrays = dict[str, np.ndarray]


class Packed:
    """Takes the arrays out of a tree, so that JSON can hold the rest.

    Attributes:
      arrays: name -> array.
    """

    def __init__(self) -> None:
        """Starts with no array."""
        self.arrays: Arrays = {}

    def tree(self, value: Any) -> Any:
        """The tree in JSON's types; in place of each array there is {"array": its name}."""
        if isinstance(value, dict):
            return {"dict": [[self.tree(k), self.tree(v)] for k, v in value.items()]}
        if isinstance(value, list | tuple):
            return [self.tree(v) for v in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        array = np.asarray(value)
        if isinstance(value, np.generic | tf.Tensor) and not array.shape and _is_plain(array):
            return array.item()
        if array.dtype == object or array.dtype.kind in "US":
            return str(value)  # A callback has put something into the logs that is no number.
        name = f"array/{len(self.arrays)}"
        self.arrays[name] = array
        return {"array": name}


def _is_plain(array: np.ndarray) -> bool:
    return array.dtype.kind in "biuf" and array.dtype != np.float16


def unpacked(tree: Any, read: Callable[[str], np.ndarray]) -> Any:
    """The inverse of `Packed.tree`; tuples have become lists."""
    if isinstance(tree, list):
        return [unpacked(one, read) for one in tree]
    if isinstance(tree, dict) and "array" in tree:
        return read(tree["array"])
    if isinstance(tree, dict):
        return {_key(unpacked(k, read)): unpacked(v, read) for k, v in tree["dict"]}
    return tree


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def record(
    chief: ChiefState,
    workers: dict[str, list[WorkerMemory | None]],
    own: list[list[np.ndarray]],
    sides: dict[str, SideState],
    outer_rates: dict[str, float | None],
) -> dict[str, Any]:
    """The chief's part of a training state, as a tree for `Packed.tree`.

    Args:
      chief, workers, own: see `Exported`.
      sides: those that are not on the servers now, but wait to be put back there.
      outer_rates: name of an exchange with an outer optimizer -> its learning rate.
    """
    plain = dict(_fields(chief))
    plain["position"] = None if chief.position is None else _fields(chief.position)
    plain["open"] = None if chief.open is None else _fields(chief.open)
    if chief.open is not None:
        plain["open"]["tally"] = chief.open.tally._asdict()
    memory = {
        kind: [None if m is None else _memory(m) for m in each] for kind, each in workers.items()
    }
    waiting = {
        name: {
            "slots": side.aggregation.outer.slots,
            "scalars": side.aggregation.outer.scalars,
            "rate": side.outer_rate,
        }
        for name, side in sides.items()
    }
    return {
        "chief": plain,
        "workers": memory,
        "own": [_arrays(values) for values in own],
        "sides": waiting,
        "outer_rates": outer_rates,
    }


def _memory(memory: WorkerMemory) -> dict[str, Any]:
    residuals = {i: _arrays(one) for i, one in memory.residuals.items()}
    return {"residuals": residuals, "inner": _arrays(memory.inner)}


def _arrays(nested: Any) -> list[np.ndarray]:
    """What is in a nested structure, with its dtypes, also of scalars."""
    return [np.asarray(one) for one in tf.nest.flatten(nested)]


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def exported(tree: dict[str, Any], servers: SavedServers) -> Exported:
    """The training state of a snapshot, whose servers' part stays in its files.

    Args:
      tree: what `record` gave.
      servers: the servers' part.
    """
    plain = dict(tree["chief"])
    position, opened = plain["position"], plain["open"]
    if position is not None:
        plain["position"] = FeedPosition(**{k: _tuples(v) for k, v in position.items()})
    if opened is not None:
        plain["open"] = OpenEpoch(**{**opened, "tally": Tally(**opened["tally"])})
    plain["history"] = [(number, logs) for number, logs in plain["history"]]
    plain["seeds"] = [np.asarray(seed) for seed in plain["seeds"]]
    sides = {
        name: SideState(state, tree["outer_rates"].get(name))
        for name, state in servers.load_outer().items()
    }
    for name, one in tree["sides"].items():
        optimizer = OptimizerState(one["slots"], one["scalars"])
        state = AggregationState(optimizer, {}, {}, np.zeros([0, 2], np.int32))
        sides[name] = SideState(state, one["rate"])
    workers = {
        kind: [m and WorkerMemory(m["residuals"], m["inner"]) for m in each]
        for kind, each in tree["workers"].items()
    }
    layout = [
        tuple(Shard(v, begin, end, ps) for v, begin, end in shards)
        for ps, _, _, shards in servers.form.buckets
    ]
    return Exported(servers, sides, workers, layout, ChiefState(**plain), tree["own"])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
