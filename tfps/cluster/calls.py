"""Calls on workers: a thin thread for each, and the mapping of what goes wrong there."""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster import failures
from tfps.cluster.devices import worker_device
from tfps.cluster.spec import Cluster

# s without a word from any worker after which the servers are asked whether they live.
_PATIENCE = 5.0

# s to wait, after an error, for what other workers are doing.
_DRAIN = 20.0


class Completion(NamedTuple):
    """A finished call.

    Attributes:
      worker: index of the worker.
      tag: what was submitted with the call.
      value: what the call returned.
    """

    worker: int
    tag: Any
    value: Any


class WorkerCalls:
    """Runs functions on workers, one at a time on each, and hands back their results.

    TensorFlow's coordinator spends over a millisecond on every closure; a
    thread that calls a concrete function under the worker's device spends a
    fraction of that.
    """

    def __init__(self, cluster: Cluster, limit: float = math.inf):
        """Starts the threads.

        Args:
          cluster: whose workers are called.
          limit: s that a call may take.
        """
        self._cluster = cluster
        self._limit = limit
        self._looked = time.monotonic()
        self._begun: list[float | None] = [None] * cluster.num_workers
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        self._todo = [queue.SimpleQueue() for _ in range(cluster.num_workers)]
        self._threads = [
            threading.Thread(target=self._serve, args=(w,), name=f"tfps-worker-{w}", daemon=True)
            for w in range(cluster.num_workers)
        ]
        for thread in self._threads:
            thread.start()
        self.pending = 0
        self._strays = False  # whether calls may still run that `drain` gave up on

    @property
    def num_workers(self) -> int:
        return len(self._todo)

    def submit(self, worker: int, function: Callable[[], Any], tag: Any = None) -> None:
        """Queues `function()` to be called under the worker's device.

        Args:
          worker: index.
          function: what it returns is the completion's value.
          tag: handed back with the result.
        """
        self.pending += 1
        self._todo[worker].put((function, tag, self._done))

    def next(self) -> Completion:
        """The next call to finish, on whatever worker.

        Raises:
          WorkerError: the function failed there; names worker and address.
          TaskLost: a worker or ps no longer answers.
          StepTimeout: all answer, but a call takes longer than the limit.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                worker, tag, value, error = self._done.get(timeout=_PATIENCE)
                break
            self._look()
        self.pending -= 1
        if time.monotonic() - self._looked > _PATIENCE:
            self._look()  # Others may go on while one hangs.
        if error is not None:
            raise self._translated(worker, error) from error
        return Completion(worker, tag, value)

    def run_on_each(self, function: Callable[[int], Any]) -> list[Any]:
        """Calls `function(worker)` under every worker's device; results by worker.

        Raises:
          ConfigError: other calls are under way.
        """
        if self.pending:
            raise errors.ConfigError(
                "the workers are in the middle of a step; call fit, evaluate and predict from "
                "on_epoch_end, not from a hook of a batch"
            )
        for w in range(self.num_workers):
            self.submit(w, lambda w=w: function(w))
        try:
            completions = [self.next() for _ in range(self.num_workers)]
        except BaseException:
            self.drain()
            raise
        return [c.value for c in sorted(completions, key=lambda c: c.worker)]

    def settle(self) -> None:
        """Waits for calls of before that did not end in time: they may still push."""
        if self._strays:
            self.run_on_each(lambda worker: None)
            self._strays = False

    def close(self) -> None:
        """Ends the threads once their present calls return."""
        for todo in self._todo:
            todo.put(None)

    def drain(self) -> None:
        """Waits for the calls under way and drops their results, errors too."""
        deadline = time.monotonic() + _DRAIN
        while self.pending and time.monotonic() < deadline:
            try:
                self._done.get(timeout=max(0.0, deadline - time.monotonic()))
                self.pending -= 1
            except queue.Empty:
                break
        if self.pending:
            # What a lost task was doing may never return; it must not come back
            # as a result of something else.
            self._done, self.pending = queue.SimpleQueue(), 0
            self._strays = True

    def _serve(self, worker: int) -> None:
        # Threads that share an executor share its errors too: what one worker's call raises
        # would end the others' calls, under their names.
        with tf.device(worker_device(worker)), _tf.own_executor() as executor:
            while (item := self._todo[worker].get()) is not None:
                function, tag, done = item
                self._begun[worker] = time.monotonic()
                try:
                    done.put((worker, tag, function(), None))
                except Exception as e:  # Whatever it is, it belongs to the caller of `next`.
                    executor.clear_error()
                    done.put((worker, tag, None, e))
                self._begun[worker] = None
                del item, function  # They may hold tensors of the worker.

    @contextlib.contextmanager
    def errors_named(self):
        """Turns TensorFlow's errors of calls that the chief makes itself into `TaskLost`."""
        try:
            yield
        except tf.errors.OpError as e:
            failures.require_alive(self._cluster, e)
            raise errors.Error(errors.summary(e.message)) from e

    def _look(self) -> None:
        """Asks after calls that take long."""
        now = self._looked = time.monotonic()
        running = {w: begun for w, begun in enumerate(self._begun) if begun is not None}
        if any(now - begun > _PATIENCE for begun in running.values()):
            # A long step is no error; a server that is gone is one, and TensorFlow may
            # not notice.
            failures.require_alive(self._cluster)
        for worker, begun in running.items():
            if now - begun > self._limit:
                address = self._cluster.spec["worker"][worker]
                raise errors.StepTimeout(
                    f"worker {worker} ({address}) answers, but has not finished a call for "
                    f"{now - begun:.0f} s; look at what its input waits for, or give "
                    f"tfps.Trainer a step_timeout above {self._limit:g}"
                )

    def _translated(self, worker: int, error: Exception) -> Exception:
        failures.require_alive(self._cluster, error)
        if not isinstance(error, tf.errors.OpError):
            return error
        address = self._cluster.spec["worker"][worker]
        return errors.WorkerError(worker, address, errors.summary(error.message))
