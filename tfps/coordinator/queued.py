"""What the work queue asks of a closure, and of whatever receives its result."""

from collections.abc import Callable
from typing import Any, Protocol

from tfps.coordinator.closures import Round
from tfps.coordinator.faults import Repeats


class Output(Protocol):
    """Whatever receives the result or the error of a closure."""

    def _set(
        self, result: Any, error: BaseException | None = None, worker: int | None = None
    ) -> None:
        """Fills in the result of a call on a worker, or the error."""


class Queued(Protocol):
    """A closure, as the queue sees it.

    Attributes:
      output: returns what receives the result, or None if nobody holds it any more.
      round: the round in which the closure runs; None if `join` does not wait for it.
      repeats: how often it was run again.
      worker: index of the worker that has to run it; None if any may.
    """

    round: Round | None
    repeats: Repeats
    worker: int | None

    @property
    def output(self) -> Callable[[], Output | None]:
        """Returns a weak reference, or a function like one."""

    def run(self, lane: Any) -> Any:
        """Runs the closure under the device of the lane's worker and returns its result."""
