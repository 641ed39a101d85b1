"""What the servers keep for the variables of a model, read and written by variable.

A column is one kind of value: the values themselves, or one slot of the optimizer, such as
"momentums". Its parts lie in server variables that are laid out as the buckets are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.store.plan import Plan
from tfps.store.server_state import Layout

# A `keras.Variable` or a `tf.Variable` on a server.
ServerVariable = Any


class Source(Protocol):
    """What some Keras variables of the chief are a copy of; each has an index in it.

    Attributes:
      is_replaced: whether the chief has replaced what the values belong to, so that equal values
        are to be written, too.
    """

    @property
    def is_replaced(self) -> bool: ...

    def read(self, i: int) -> dict[int, np.ndarray]:
        """The value of index `i`, and of whatever is read with it, by index."""

    def write(self, values: Mapping[int, np.ndarray], busy: bool) -> None:
        """Replaces some values.

        Args:
          values: by index.
          busy: whether workers may push meanwhile.
        """


class Writer:
    """Replaces what is on the servers."""

    def __init__(
        self, locks: Sequence[tf.Tensor], before: Callable[[ServerVariable], None] = lambda _: None
    ):
        """Notes the locks.

        Args:
          locks: per ps, the mutex under which pushes are applied.
          before: called with each variable before it is written.
        """
        self._locks, self._before = locks, before
        self._locked = tf.function(self._write_locked, autograph=False, reduce_retracing=True)

    def write(
        self,
        ps: int,
        variable: ServerVariable,
        value: np.ndarray,
        busy: bool,
        begin: int | None = None,
    ) -> None:
        """Writes one server variable.

        Args:
          ps: where it is.
          variable: the server variable.
          value: of all of it, or of a part.
          busy: whether workers may push meanwhile. It then takes the lock of pushes, because a push
            that has read the old value would write over the new one.
          begin: where the part begins in a flat variable; None if `value` is all of it.
        """
        self._before(variable)
        with tf.device(ps_device(ps)):
            tensor = tf.cast(tf.convert_to_tensor(value), variable.dtype)
            span = None if begin is None else tf.constant([begin, begin + len(value)])
            if busy:
                self._locked(self._locks[ps], variable.handle, tensor, span)
            else:
                _assign(variable.handle, tensor, span)

    @staticmethod
    def _write_locked(lock, handle, value, span):
        held = tf.raw_ops.MutexLock(mutex=lock)
        with tf.control_dependencies([held]):
            written = _assign(handle, value, span)
        with tf.control_dependencies([written]):
            tf.raw_ops.ConsumeMutexLock(mutex_lock=held)


def _assign(handle: tf.Tensor, value: tf.Tensor, span: tf.Tensor | None) -> tf.Operation:
    """Writes all of a variable, or the elements from `span[0]` to `span[1]` of a flat one."""
    if span is None:
        return tf.raw_ops.AssignVariableOp(resource=handle, value=value)
    return tf.raw_ops.ResourceStridedSliceAssign(
        ref=handle, begin=span[:1], end=span[1:], strides=tf.ones_like(span[:1]), value=value
    )


class Column:
    """A `Source` whose indices are those of the plan's variables."""

    is_replaced = False

    def __init__(self, plan: Plan, held: Mapping[int, ServerVariable], writer: Writer):
        """Finds out which variables share buckets.

        Args:
          plan: of the store.
          held: bucket -> server variable, for the buckets that the column has; those of variables
            that are too large for the chief are left out.
          writer: of the store.
        """
        self._plan, self._layout, self._writer = plan, Layout(plan), writer
        self._held = {
            b: v
            for b, v in held.items()
            if plan.buckets[b].shards[0].variable not in {*plan.remote, *plan.hashed}
        }
        self._buckets: dict[int, list[int]] = {}  # variable -> the buckets that hold a part of it
        for b in self._held:
            for i in {s.variable for s in plan.buckets[b].shards}:
                self._buckets.setdefault(i, []).append(b)
        self._together = self._components()

    def variables(self) -> list[int]:
        """The indices of the variables that the column has a value for."""
        return sorted(self._buckets)

    def read(self, i: int) -> dict[int, np.ndarray]:
        # One bucket after the other, so that the chief holds what it reads twice at most.
        buckets = sorted({b for v in self._together[i] for b in self._buckets[v]})
        return self._layout.whole((b, self._held[b].numpy()) for b in buckets)

    def write(self, values: Mapping[int, np.ndarray], busy: bool) -> None:
        for b in sorted({b for i in values for b in self._buckets[i]}):
            ps, held = self._plan.buckets[b].ps, self._held[b]
            if all(s.variable in values for s in self._plan.buckets[b].shards):
                self._writer.write(ps, held, self._layout.part(b, values), busy)
            else:
                for begin, part in self._parts(b, values):
                    self._writer.write(ps, held, part, busy, begin)

    def _parts(self, b: int, values: Mapping[int, np.ndarray]) -> list[tuple[int, np.ndarray]]:
        """(where it begins, the flat part) of each variable that has a value in a flat bucket."""
        shards = self._plan.buckets[b].shards
        begins = np.cumsum([0, *(s.size for s in shards)])[:-1]
        return [
            (int(begin), values[s.variable].reshape([-1])[s.begin : s.end])
            for s, begin in zip(shards, begins, strict=True)
            if s.variable in values
        ]

    def _components(self) -> dict[int, list[int]]:
        """Variable -> those that are read with it, because they share buckets with it."""
        found: dict[int, list[int]] = {}
        for b in self._held:
            members = {s.variable for s in self._plan.buckets[b].shards}
            joined = sorted(members.union(*(found.get(i, ()) for i in members)))
            found.update(dict.fromkeys(joined, joined))
        return found


class Scalars:
    """A `Source` of one value, index 0, of which servers have copies."""

    is_replaced = False

    def __init__(self, held: Sequence[tuple[int, ServerVariable]], writer: Writer):
        """Notes where the copies are.

        Args:
          held: (ps, server variable), at least one.
          writer: of the store.
        """
        self._held, self._writer = held, writer

    def read(self, i: int) -> dict[int, np.ndarray]:
        return {i: np.asarray(self._held[0][1].numpy())}

    def write(self, values: Mapping[int, np.ndarray], busy: bool) -> None:
        for ps, variable in self._held:
            self._writer.write(ps, variable, values[0], busy)


class Updates:
    """A `Source` of one value, index 0: how many updates the optimizer has applied.

    Attributes:
      count: as far as the chief knows, without asking the servers.
    """

    is_replaced = False

    def __init__(self, servers: Scalars | None):
        """Counts from 0.

        Args:
          servers: their own counts; None if they have none.
        """
        self.count = 0
        self._servers = servers

    def read(self, i: int) -> dict[int, np.ndarray]:
        return {i: np.asarray(self.count)}

    def write(self, values: Mapping[int, np.ndarray], busy: bool) -> None:
        wanted = int(values[0])
        if self._servers is not None:
            # What the servers have not counted are updates of another optimizer (`LocalSteps`).
            elsewhere = self.count - int(self._servers.read(0)[0])
            self._servers.write({0: np.asarray(max(0, wanted - elsewhere))}, busy)
        self.count = wanted
