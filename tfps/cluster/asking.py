"""What the chief itself asks of servers, outside of calls on workers: with a limit to its wait."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from tfps import errors
from tfps.cluster import failures, health, members, turns
from tfps.cluster.spec import Cluster

_T = TypeVar("_T")

_Todo = queue.SimpleQueue


class Asker:
    """Runs the chief's own requests to servers in a thread that may be left behind.

    TensorFlow waits for a server without any limit, and nothing can interrupt that. So whoever asks
    waits for the thread, looks from time to time whether the parameter servers live, and gives up
    after the limit. A worker that is lost disturbs nobody who asks nothing of it.
    """

    def __init__(self, cluster: Cluster, limit: float):
        """The thread starts with the first request.

        Args:
          cluster: whose servers are asked.
          limit: s that a request may take while all ps accept connections.
        """
        self._cluster, self._limit = cluster, limit
        self._todo: _Todo | None = None

    def __call__(self, function: Callable[[], _T], workers: Collection[int] = ()) -> _T:
        """Calls `function()` in the thread, and returns or raises what the call does.

        Args:
          function: reads or writes what is on the servers. It waits for nothing else, and does not
            ask by itself.
          workers: indices of the workers of which the function asks something, too.

        Raises:
          TaskLost: a ps, or one of the workers, does not answer any more.
          StepTimeout: all ps accept connections, but the answer takes longer than the limit.
        """
        if (todo := self._todo) is None:
            todo = self._todo = queue.SimpleQueue()
            threading.Thread(
                target=_serve, args=(todo,), name="tfps-chief-asks", daemon=True
            ).start()
        done: queue.SimpleQueue = queue.SimpleQueue()
        todo.put((function, done))
        begun = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                result, error = done.get(timeout=min(health.PATIENCE, self._limit))
                break
            try:
                self._look(time.monotonic() - begun, workers)
            except BaseException:
                # The thread may hang for ever; whoever asks next gets another one.
                self.close()
                raise
        if error is not None:
            raise error
        return result

    def require_alive(self) -> None:
        """Raises `TaskLost` if a ps does not answer any more; whoever waits repeats this."""
        members.of(self._cluster).attend()
        failures.require_alive(self._cluster)

    def _look(self, seconds: float, workers: Collection[int]) -> None:
        members.of(self._cluster).attend()
        failures.require_alive(self._cluster, workers=workers)
        if seconds > self._limit:
            raise errors.StepTimeout(
                "the servers accept connections, but one has not answered the chief, which reads "
                f"or writes variables there, for {seconds:.0f} s; look which ps is frozen or "
                f"overloaded, or give tfps.Trainer a step_timeout above {self._limit:g}"
            )

    def close(self) -> None:
        """Ends the thread once its present request is answered."""
        todo, self._todo = self._todo, None
        if todo is not None:
            todo.put(None)


def _serve(todo: _Todo) -> None:
    while (request := todo.get()) is not None:
        function, done = request
        result: Any = None
        error: BaseException | None = None
        try:
            with turns.request():
                result = function()
        except BaseException as e:  # It belongs to whoever has asked.
            error = e
        done.put((result, error))
        # They may hold large arrays, and an error holds whole frames.
        del request, function, done, result, error
