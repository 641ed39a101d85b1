"""A call of the Trainer's on a worker: its way to the worker's lane, and of its end back."""

import queue
from collections.abc import Callable
from typing import Any

from tfps.cluster.lanes import Lane


class Submitted:
    """A call, and where its end is told.

    Attributes:
      function: what is called.
      tag: what its completion hands back.
      done: gets (worker, call, result, error) when the call has ended.
    """

    def __init__(self, function: Callable[[], Any], tag: Any, done: queue.SimpleQueue):
        """See the attributes."""
        self.function, self.tag, self.done = function, tag, done

    def run(self, lane: Lane) -> Any:
        """Makes the call, in the lane's thread."""
        del lane
        return self.function()


class LaneSource:
    """Hands one lane its calls, and passes on what came of them."""

    def __init__(self, todo: queue.SimpleQueue):
        """Takes calls from `todo`; None ends the lane."""
        self._todo = todo

    def take(self, lane: Lane) -> Submitted | None:
        """Waits for the next call."""
        del lane
        return self._todo.get()

    def finished(
        self, lane: Lane, call: Submitted, result: Any, error: BaseException | None
    ) -> None:
        """Passes what came of a call to whoever waits for it."""
        call.done.put((lane.worker, call, result, error))
