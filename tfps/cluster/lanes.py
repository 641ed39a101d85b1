"""Lanes: the threads that run calls on workers."""

import threading
import time
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from tfps import _tf
from tfps.cluster.devices import worker_device


class Call(Protocol):
    """A call on a worker, as a lane runs it."""

    def run(self, lane: Any) -> Any:
        """Runs the call under the device of the lane's worker and returns its result."""


class Source(Protocol):
    """Whoever has calls for lanes. Each lane asks for one call, runs it, and tells what came of it.

    Both methods are called by the lanes' threads, by several of them at the same time.
    """

    def take(self, lane: Any) -> Call | None:
        """Waits for the lane's next call; None ends the lane."""

    def finished(self, lane: Any, call: Any, result: Any, error: BaseException | None) -> None:
        """Takes note of what the call returned, or of the error that it raised."""


class _Dispatch(NamedTuple):
    """What TensorFlow's per-worker resources ask to know while a function is called."""

    worker_index: int


class Lane:
    """A thread that runs calls on one worker, one after the other.

    Its operations have an executor of their own. Threads that share an executor share its errors
    too: what one worker's call raises would end the calls of other workers, under their names.

    Attributes:
      worker: index of the worker.
      index: number of this lane among the lanes of its worker.
      device: TensorFlow's name of the worker's device.
      begun: time (`time.monotonic`, in s) at which the present call began; None between calls.
      thread_name: how the names of such lanes' threads begin.
    """

    thread_name = "tfps-worker"

    def __init__(self, worker: int, source: Source, index: int = 0):
        """Describes the lane; `start` starts its thread.

        Args:
          worker: index of the worker.
          source: whose calls the lane runs.
          index: number of this lane among the lanes of its worker.
        """
        self.worker = worker
        self.index = index
        self.device = worker_device(worker)
        self.begun: float | None = None
        self._source = source

    def start(self) -> None:
        """Starts the thread. The program can end while it runs."""
        name = f"{self.thread_name}-{self.worker}.{self.index}"
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        source = self._source
        dispatch = _tf.dispatch_context(_Dispatch(self.worker))
        with tf.device(self.device), dispatch, _tf.own_executor() as executor:
            while (call := source.take(self)) is not None:
                result = error = None
                self.begun = time.monotonic()
                try:
                    result = call.run(self)
                except BaseException as e:  # It belongs to whoever waits for the call.
                    error = e
                    executor.clear_error()
                self.begun = None
                source.finished(self, call, result, error)
                # They may hold tensors on the worker, and an error holds whole frames.
                del call, result, error
        # A source that knows its lanes would otherwise be freed only by the garbage collector.
        del self._source
