"""What has changed since an export."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfps import errors
from tfps.serving import taking_in as names
from tfps.serving.content import Content, Rows, Source, Variables, model_of

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def delta(
    source: Source, path: str | os.PathLike, since: Sequence[str | os.PathLike]
) -> dict[str, int]:
    """Writes what has changed of a model since it was exported.

    It has the rows of tables, and of other weights, of which a bit has changed, and the keys that
    were removed. An exported model that has taken in all deltas, one after the other, is equal bit
    by bit to one that is exported anew.

    Args:
      source: as for `export`.
      path: the prefix of the files to write, which `apply` of the served model is given.
      since: the folder of the export, then the paths of all deltas since, in their order.

    Returns:
      How many rows of tables have changed ("rows"), how many keys were removed ("removed"), and how
      many rows of other weights have changed ("weights").

    Raises:
      ConfigError: the model has other variables than the exported one, or `since` is not what was
        written one after the other.
    """
    variables = Variables.of(model_of(source))
    id, before = _before([os.fspath(one) for one in since])
    now = variables.content(source)
    _require_alike(now, before)
    written: dict[str, Any] = {names.ID: id, names.NUMBER: np.int64(len(since))}
    counts = dict.fromkeys(("rows", "removed", "weights"), 0)
    for k, (new, old) in enumerate(zip(now.weights, before.weights, strict=True)):
        rows = changed_rows(new, old)
        written[f"{names.VALUES}/{k}"] = new[rows] if new.ndim else new
        if new.ndim:
            written[f"{names.CHANGED}/{k}"] = rows
        counts["weights"] += len(rows)
    for k, (table, old_table) in enumerate(zip(now.tables, before.tables, strict=True)):
        changed, removed = difference(table, old_table)
        written[f"{names.KEYS}/{k}"], written[f"{names.ROWS}/{k}"] = changed
        written[f"{names.REMOVED}/{k}"] = removed
        counts["rows"] += len(changed.keys)
        counts["removed"] += len(removed)
    tf.raw_ops.SaveV2(
        prefix=os.fspath(path),
        tensor_names=list(written),
        shape_and_slices=[""] * len(written),
        tensors=list(written.values()),
    )
    return counts


def changed_rows(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """int64 [n]: which rows of the first axis differ in a bit; [0] for a scalar that differs."""
    if not new.size:
        return np.zeros([0], np.int64)
    a, b = (np.ascontiguousarray(x).reshape([len(x) if x.ndim else 1, -1]) for x in (new, old))
    if a.dtype != object:
        a, b = a.view(np.uint8), b.view(np.uint8)
    return np.flatnonzero((a != b).any(1)).astype(np.int64)


def difference(new: Rows, old: Rows) -> tuple[Rows, np.ndarray]:
    """(keys that are new, or whose row differs in a bit, with their rows; int64, keys removed)."""
    _, mine, theirs = np.intersect1d(new.keys, old.keys, assume_unique=True, return_indices=True)
    changed: np.ndarray = np.ones(len(new.keys), bool)
    changed[mine] = False
    changed[mine[changed_rows(new.rows[mine], old.rows[theirs])]] = True
    removed = np.setdiff1d(old.keys, new.keys, assume_unique=True)
    return Rows(new.keys[changed], new.rows[changed]), removed


def taken_in(before: Content, read: Any) -> Content:
    """What a delta makes of a content, as the served model does.

    Args:
      before: the content.
      read: from a name to what the delta has under it.
    """
    weights = []
    for k, old in enumerate(before.weights):
        value = np.asarray(read(f"{names.VALUES}/{k}"))
        if old.ndim:
            new = old.copy()
            new[read(f"{names.CHANGED}/{k}")] = value
        weights.append(new if old.ndim else value)
    tables = []
    for k, (keys, rows) in enumerate(before.tables):
        changed, values = read(f"{names.KEYS}/{k}"), read(f"{names.ROWS}/{k}")
        left = ~np.isin(keys, np.concatenate([changed, read(f"{names.REMOVED}/{k}")]))
        merged = np.concatenate([keys[left], changed]), np.concatenate([rows[left], values])
        tables.append(Rows.ordered(*merged))
    return Content(weights, tables)


def _before(since: Sequence[str]) -> tuple[Any, Content]:
    """(the id of the export, what its model has after the deltas)."""
    if not since:
        raise errors.ConfigError("since=[] must begin with the folder of an export; add it")
    base, *paths = since
    read = _reader(os.path.join(base, "variables", "variables"))
    id = read(f"state/id{_VALUE}")
    found = Content(
        _listed(read, "weights"),
        [Rows(*one) for one in zip(_listed(read, "keys"), _listed(read, "rows"), strict=True)],
    )
    for number, path in enumerate(paths, 1):
        read = _reader(path)
        if read(names.ID) != id or read(names.NUMBER) != number:
            raise errors.ConfigError(
                f"since has {path} as delta {number} of {base}, but it is delta "
                f"{read(names.NUMBER)} of {'it' if read(names.ID) == id else 'another export'}; "
                "give all deltas of one export, in their order"
            )
        found = taken_in(found, read)
    return id, found


def _listed(read, name):
    found: list[np.ndarray] = []
    while read.has(f"state/{name}/{len(found)}{_VALUE}"):
        found.append(np.asarray(read(f"state/{name}/{len(found)}{_VALUE}")))
    return found


class _Checkpoint:
    """Reads a checkpoint by name."""

    def __init__(self, prefix: str):
        self._reader = tf.train.load_checkpoint(prefix)
        self.has = self._reader.has_tensor

    def __call__(self, name):
        return self._reader.get_tensor(name)


def _reader(prefix: str) -> _Checkpoint:
    try:
        return _Checkpoint(prefix)
    except (tf.errors.OpError, OSError, ValueError) as e:
        raise errors.ConfigError(
            f"since has {prefix}, which is not there or damaged; give what export and delta have "
            "written"
        ) from e


def _require_alike(now: Content, before: Content) -> None:
    def form(content: Content) -> list:
        weights = [(one.shape, one.dtype) for one in content.weights]
        return [*weights, *(table.rows.shape[1:] for table in content.tables)]

    if form(now) != form(before):
        raise errors.ConfigError(
            f"the model has {len(now.weights)} weights and {len(now.tables)} tables, and not of "
            "the shapes that were exported; export it anew"
        )
