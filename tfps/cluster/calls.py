"""The Trainer's calls on workers: one at a time on each, and results in the order of their ends."""

import contextlib
import functools
import math
import queue
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tfps import errors
from tfps.cluster import health
from tfps.cluster.asking import Asker
from tfps.cluster.lanes import Lane
from tfps.cluster.spec import Cluster


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


class _Submitted(NamedTuple):
    """A call, and the queue that receives (worker, tag, value, error) when it ends."""

    function: Callable[[], Any]
    tag: Any
    done: queue.SimpleQueue

    def run(self, lane: Lane) -> Any:
        del lane
        return self.function()


class WorkerCalls:
    """Runs functions on workers, one at a time on each, and hands back their results.

    Attributes:
      pending: number of calls whose results `next` has not handed back.
      ask: calls a function by which the chief itself asks servers; see `Asker`.
    """

    def __init__(self, cluster: Cluster, limit: float = math.inf):
        """Starts a lane for each worker.

        Args:
          cluster: whose workers are called.
          limit: s that a call may take.
        """
        self.pending = 0
        self.ask = Asker(cluster, limit)
        self._strays = False  # whether calls may still run that `drain` gave up on
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        self._todo: list[queue.SimpleQueue] = [
            queue.SimpleQueue() for _ in range(cluster.num_workers)
        ]
        lanes = [Lane(w, self) for w in range(cluster.num_workers)]
        self._health = health.Health(cluster, lanes, limit)
        for lane in lanes:
            lane.start()

    @property
    def num_workers(self) -> int:
        """Number of workers that are called."""
        return len(self._todo)

    def submit(self, worker: int, function: Callable[[], Any], tag: Any = None) -> None:
        """Queues `function()` to be called under the worker's device.

        Args:
          worker: index of the worker.
          function: the call. What it returns is the completion's value.
          tag: what the completion hands back with the value.
        """
        self.pending += 1
        self._todo[worker].put(_Submitted(function, tag, self._done))

    def next(self) -> Completion:
        """Waits for the next call to finish, on whatever worker.

        Raises:
          WorkerError: the call failed on its worker. The error names worker and address, and is
            an instance of TensorFlow's class too.
          TaskLost: a worker or ps no longer answers.
          StepTimeout: all servers answer, but a call takes longer than the limit.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                worker, tag, value, error = self._done.get(timeout=health.PATIENCE)
                break
            self._health.look()
        if worker is None:
            raise error
        self.pending -= 1
        if self._health.due:  # One call may hang while the calls of other workers go on.
            self._health.look()
        if error is not None:
            raise error
        return Completion(worker, tag, value)

    def interrupt(self, error: BaseException) -> None:
        """Makes `next` raise an error that no call on a worker has raised."""
        self._done.put((None, None, None, error))

    def run_on_each(self, function: Callable[[int], Any]) -> list[Any]:
        """Calls `function(worker)` under every worker's device; returns the results by worker.

        Raises:
          ConfigError: other calls are under way.
          Exception: a call failed; see `next`.
        """
        if self.pending:
            raise errors.ConfigError(
                "the workers are in the middle of a step; call fit, evaluate and predict from "
                "on_epoch_end, not from a hook of a batch"
            )
        for w in range(self.num_workers):
            self.submit(w, functools.partial(function, w))
        try:
            completions = [self.next() for _ in range(self.num_workers)]
        except BaseException:
            self.drain()
            raise
        return [c.value for c in sorted(completions, key=lambda c: c.worker)]

    def settle(self) -> None:
        """Waits for calls that `drain` gave up on: they may still push."""
        if self._strays:
            self.run_on_each(lambda worker: None)
            self._strays = False

    def drain(self) -> None:
        """Waits for the calls under way and drops their results and errors."""
        deadline = time.monotonic() + health.DRAIN
        while self.pending:
            try:
                worker, *_ = self._done.get(timeout=max(0.0, deadline - time.monotonic()))
                self.pending -= worker is not None
            except queue.Empty:
                # What a lost task was doing may never return. It must not come back as a result
                # of something else.
                self._done, self.pending = queue.SimpleQueue(), 0
                self._strays = True

    def close(self) -> None:
        """Ends the lanes, and the thread that asks, once their present calls return."""
        self.ask.close()
        for todo in self._todo:
            todo.put(None)

    def errors_named(self) -> contextlib.AbstractContextManager[None]:
        """Names the errors of what the chief itself asks of servers; see `Health`."""
        return self._health.errors_named()

    # The lanes' side.

    def take(self, lane: Lane) -> _Submitted | None:
        """Waits for the next call for the lane's worker."""
        return self._todo[lane.worker].get()

    def finished(
        self, lane: Lane, call: _Submitted, result: Any, error: BaseException | None
    ) -> None:
        """Passes what came of a call to whoever waits for it."""
        if error is not None:
            # Whatever happens meanwhile, whoever waits for the call has to learn that it ended.
            with contextlib.suppress(Exception):
                error = self._health.named(lane.worker, error)
        call.done.put((lane.worker, call.tag, result, error))
