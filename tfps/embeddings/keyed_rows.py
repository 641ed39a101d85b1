"""Rows of a table that grows as an array that knows whose they are.

Keras's `get_weights` and `set_weights`, and callbacks such as `EarlyStopping`, read and write one
array for each variable. Rows without their keys mean nothing once keys have come or gone, so what
the variable's `numpy` returns carries the keys, and `assign` takes them.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras_creation
from tfps.embeddings.local_table import Held, LocalTable

_LAYER = "_tfps_keyed_by"


class KeyedRows(np.ndarray):
    """The rows of a process, as `numpy` returns them.

    What numpy derives from them has no keys, with the exception of copies and of what is computed
    element by element, such as the mean of several: that has keys if all have the same.

    Attributes:
      held: the keys; None if there are none.
    """

    held: Held | None

    @classmethod
    def of(cls, rows: Any, held: Held | None) -> "KeyedRows":
        """Rows with these keys."""
        made = np.asarray(rows).view(cls)
        made.held = held
        return made

    def __array_finalize__(self, source: Any) -> None:
        self.held = None

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.get("out", ())
        keyed = [one for one in (*inputs, *out) if isinstance(one, KeyedRows)]
        if out:
            kwargs["out"] = tuple(map(_plain, out))
        result = getattr(ufunc, method)(*map(_plain, inputs), **kwargs)
        if out and isinstance(out[0], KeyedRows):
            result = out[0]
        if method != "__call__" or np.shape(result) != keyed[0].shape:
            return result
        first = keyed[0].held
        return KeyedRows.of(result, first if all(_alike(first, k.held) for k in keyed) else None)

    def copy(self, order: Any = "C") -> "KeyedRows":
        return KeyedRows.of(_plain(self).copy(order), self.held)

    def astype(self, *args: Any, **kwargs: Any) -> "KeyedRows":
        return KeyedRows.of(_plain(self).astype(*args, **kwargs), self.held)

    def __copy__(self) -> "KeyedRows":
        return self.copy()

    def __deepcopy__(self, memo: Any) -> "KeyedRows":
        del memo
        return self.copy()

    def __reduce__(self) -> Any:
        return KeyedRows.of, (_plain(self), self.held)


def _plain(array: Any) -> Any:
    return np.asarray(array) if isinstance(array, KeyedRows) else array


def _alike(one: Held | None, other: Held | None) -> bool:
    if one is None or other is None:
        return one is other
    pairs = zip(one.keys[:2], other.keys[:2], strict=True)  # The keys and their rows.
    return one is other or all(np.array_equal(a, b) for a, b in pairs)


class RowsVariable(keras.Variable):
    """The Keras variable of the rows of a process."""

    def numpy(self) -> np.ndarray:
        rows = super().numpy()  # It brings rows from servers, and their keys.
        return KeyedRows.of(rows, vars(self)[_LAYER].given()) if _is_outside() else rows

    def assign(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and _is_outside():
            held = value.held if isinstance(value, KeyedRows) else None
            self.value  # As for `numpy`.  # noqa: B018
            is_plain = not isinstance(value, KeyedRows)
            local: LocalTable = vars(self)[_LAYER].local
            value = local.rows_of(_plain(value), held, is_plain, self.path)
        return super().assign(value)


def carry_keys(variable: keras.Variable, layer: Any) -> None:
    """Lets a variable give its rows with the keys of a layer, and take both."""
    variable.__class__ = RowsVariable
    vars(variable)[_LAYER] = layer


def _is_outside() -> bool:
    """Whether neither a graph is traced nor other values stand for the variables."""
    return tf.executing_eagerly() and not _keras_creation.in_stateless_scope()
