"""The result of a scheduled function."""

import threading
from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from tfps import _tf, _tf_functions
from tfps.cluster.devices import worker_device
from tfps.coordinator.result_buffer import Row


class Queue(Protocol):
    """What remote values need of the `WorkQueue` whose worker fills them."""

    def wait_for(self, value: "RemoteValue") -> None:
        """Waits until the value or its error is there."""

    def bring(self, values: list["RemoteValue"]) -> None:
        """Copies results that are there to the chief, or has lost ones computed again."""

    def errors_named(self) -> AbstractContextManager[None]:
        """Names the errors of copying to the chief."""


class Source(NamedTuple):
    """Where a result comes from, and so how to get it once more.

    Attributes:
      closure: the call that has computed it.
      worker: index of the worker on which it is.
      life: the life of the worker in which it did; see `Members.life`.
    """

    closure: Any
    worker: int
    life: int


def interned(spec: Any, known: dict[Hashable, Any]) -> Any:
    """Returns one object for all equal type specs, so that they can be compared by identity.

    Args:
      spec: a type spec, or a structure of them.
      known: the specs of earlier calls, to which this one is added.
    """
    try:
        return known.setdefault(spec, spec)
    except TypeError:  # A structure that has no hash.
        return known.setdefault(id(spec), spec)


class RemoteValue(tf.distribute.coordinator.RemoteValue):
    """The result of a scheduled function, available once the function has run.

    The result stays on the worker until somebody asks for it, or waits for all functions. If it is
    lost with the worker before, the function runs again.
    """

    __slots__ = (
        *("_error", "_event", "_local", "_packed", "_queue", "_ready", "_result", "_source"),
        # Set when there is something to set: `__init__` is part of the cost of a function.
        *("_remote", "_worker"),
    )

    _remote: tuple[Any]  # The result on its worker, for whoever has asked for `_values`.
    _worker: int | None  # The index of the worker that has filled it in.

    def __init__(self, queue: Queue, packed_by: _tf_functions.FlatFunction | None = None):
        """Has no result yet. `ClusterCoordinator.schedule` makes remote values.

        Args:
          queue: the `WorkQueue` whose worker fills it.
          packed_by: the function whose flat outputs it is filled with, or None if it is filled
            with the structure itself.
        """
        self._queue = queue
        self._packed = packed_by
        self._ready = False
        self._event: threading.Event | None = None
        self._error: BaseException | None = None
        self._result: Any = None
        self._local: tuple[Any] | None = None  # The result on the chief, once it is there.
        # Set while the result is on its worker only. A value that is ready, without an error and
        # without a source, needs the worker no more.
        self._source: Source | None = None

    def get(self) -> Any:
        """Waits for the function and copies its result to the chief.

        Returns:
          The structure that the function returned, of `tf.Tensor`s.

        Raises:
          WorkerError: the function failed; also an instance of TensorFlow's class.
          TaskLost: a worker or ps is gone; also a `tf.errors.UnavailableError`.
          tf.errors.CancelledError: the function was not run because another failed.
        """
        while True:
            self._wait()
            if self._error is not None:
                raise self._error
            if self._source is None:
                break
            self._queue.bring([self])
        # Two threads may come here, and one may be quicker. It forgets the result last.
        result, local = self._result, self._local
        if local is None:
            parts = result.tensors() if isinstance(result, Row) else result
            local = self._local = (_structured(parts, self._packed),)
            self._result = None
        return local[0]

    def fetch(self) -> Any:
        """Like `get`, with NumPy arrays in place of tensors."""
        return tf.nest.map_structure(lambda x: x.numpy() if hasattr(x, "numpy") else x, self.get())

    # What follows is for the work queue, and for TensorFlow's per-worker values.

    def _set(
        self, result: Any, error: BaseException | None = None, worker: int | None = None
    ) -> None:
        """Fills in a worker's result, or the error; the queue's lock is held."""
        self._worker = worker
        self._result, self._error, self._ready = result, error, True
        if self._event is not None:
            self._event.set()

    def _brought(self, local: Any) -> None:
        """Takes note of the flat result on the chief; None if the row is there."""
        if local is not None:
            self._local = (_structured(local, self._packed),)
        self._source = None
        if local is not None:
            self._result = None

    def _renew(self) -> None:
        """Has no result any more, until it is computed again; the queue's lock is held."""
        # The source stays until there is another one: without a source, a result is on the chief.
        self._ready, self._event, self._result = False, None, None
        if hasattr(self, "_remote"):
            del self._remote

    def _wait(self) -> None:
        if not self._ready:
            self._queue.wait_for(self)

    def _waiter(self) -> threading.Event:
        """Returns an event that is set when the value is ready; the queue's lock is held."""
        self._event = self._event or threading.Event()
        if self._ready:
            self._event.set()
        return self._event

    def _get_values(self) -> Any:
        self._wait()
        result, local = self._result, self._local
        if isinstance(result, Row):
            return self.get()
        return _structured(result, self._packed) if local is None else local[0]

    @property
    def _values(self) -> Any:
        """The result as tensors on its worker, where TensorFlow keeps it; None if there is none.

        A result that has been fetched, or is in a buffer, has no tensors there any more; it is
        copied back to the worker when somebody looks for the first time.
        """
        if not self._ready or self._error is not None:
            return None
        known = getattr(self, "_remote", None)
        if known is None:
            known = self._remote = (self._on_worker(),)
        return known[0]

    def _on_worker(self) -> Any:
        result, local = self._result, self._local
        if local is None and not isinstance(result, Row):
            return _structured(result, self._packed)
        assert self._worker is not None  # A lane has filled in the result.
        local_result = self.get()
        with self._queue.errors_named():
            return copied(local_result, worker_device(self._worker))

    def _get_error(self):
        self._wait()
        return self._error

    @property
    def _status(self):
        return _tf.RemoteValueStatus.READY if self._ready else _tf.RemoteValueStatus.NOT_READY


def _structured(result: Any, packed: _tf_functions.FlatFunction | None) -> Any:
    return result if packed is None else packed.packed(result)


class Resource(RemoteValue):
    """A per-worker value: what a function made on one worker, such as an iterator.

    It is made again when the worker has lost its memory.

    Attributes:
      closure: the call that makes it, once the coordinator has queued one.
    """

    __slots__ = ("_components", "_known", "_spec", "closure")

    def __init__(self, queue: Queue, specs: dict[Hashable, Any]):
        """Has no value yet. The coordinator makes resources.

        Args:
          queue: see `RemoteValue`.
          specs: all type specs of the coordinator's resources; see `interned`.
        """
        super().__init__(queue)
        self._known = specs
        # The value, and the tensors that it is as an argument.
        self._components: tuple[Any, list[tf.Tensor]] | None = None
        self._spec: Any = None
        self.closure: Any = None

    @property
    def _type_spec(self):
        return self._spec

    @_type_spec.setter
    def _type_spec(self, spec) -> None:
        self._spec = interned(spec, self._known)

    def get(self) -> Any:
        """Waits for the value and copies it to the chief, as it is now: a variable changes."""
        value = self.value()
        with self._queue.errors_named():
            return copied(value, _tf.chief_device())

    def value(self) -> Any:
        """Waits for the value and returns it as it is, on its worker; raises like `get`."""
        self._wait()
        if self._error is not None:
            raise self._error
        return self._result

    @property
    def _values(self) -> Any:
        return self._result if self._ready and self._error is None else None

    def error(self) -> BaseException | None:
        """Waits for the value; returns the error if it could not be made."""
        return self._get_error()

    def components(self) -> list[tf.Tensor]:
        """Returns the tensors, such as handles, that the value is as an argument of a function."""
        value, known = self.value(), self._components
        if known is None or known[0] is not value:
            flat = tf.nest.flatten(value, expand_composites=True)
            known = self._components = value, [x for x in flat if x is not None]
        return known[1]

    @property
    def _status(self):
        # TensorFlow asks this when it has waited. It would take a value that has just been renewed
        # for one that was never made, but waits for it again if it is READY. `_worker` is there
        # once the value was made.
        return _tf.RemoteValueStatus.READY if hasattr(self, "_worker") else super()._status

    def renew(self) -> None:
        """Has no value any more, until it is made again; the queue's lock is held."""
        if self._ready:
            self._ready, self._event = False, None


def copied(structure: Any, device: str) -> Any:
    """Copies tensors and variables to a device, and leaves iterators and None as they are."""

    def copy(x: Any) -> Any:
        if x is None or isinstance(x, (tf.distribute.DistributedIterator, tf.data.Iterator)):
            return x
        return tf.identity(x)

    with tf.device(device):
        return tf.nest.map_structure(copy, structure)
