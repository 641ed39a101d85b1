"""Whether a function that failed is run again: what its error says, and who is lost."""

import contextlib
import threading
from collections.abc import Iterable, Iterator

import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster import failures
from tfps.cluster.members import Members, Task

# s to wait until a silent task answers or is lost. A worker is waited for in any case; a parameter
# server that has failed a worker is gone for the worker already.
_SETTLE = 15.0

# How often a function is run again because of faults that pass, and how often because it lost its
# worker. A function that brings down every worker on which it runs is not run for ever.
MOST_FAULTS = 5
MOST_LOSSES = 10


class Repeats:
    """How often a closure was run again.

    Attributes:
      faults: because of faults that passed.
      losses: because it lost its worker.
    """

    __slots__ = ("faults", "losses")

    def __init__(self) -> None:
        """Has not been run again."""
        self.faults = self.losses = 0


class Faults:
    """Judges the errors of calls on workers."""

    def __init__(self, members: Members):
        """Asks `members` who is lost."""
        self._members = members
        self._lock = threading.Lock()
        self._counted: dict[Task, int] = {}  # The life of a worker whose end was counted last.

    def judged(self, worker: int, error: BaseException, repeats: Repeats) -> BaseException | None:
        """Waits until it is known who is lost, and decides what becomes of a call that failed.

        Args:
          worker: index of the worker on which the call failed.
          error: what the call raised.
          repeats: what is known of the call; it is counted here.

        Returns:
          None if the call should be repeated; otherwise the error as the chief's code should see
          it, see `failures.described`.
        """
        if isinstance(error, errors.Error):  # That of an argument, which has a name already.
            return error
        task = Task("worker", worker)
        address = self._members.address(task)
        if not failures.is_of_network(error):
            return failures.described(error, worker, address)
        self._members.suspect()
        lost = self._members.settle(timeout=_SETTLE)
        if gone := self.lost_ps(lost):
            return failures.unavailable(gone, error)
        if task in lost:
            return self.of_loss(worker, error, repeats)
        repeats.faults += 1
        kinds = tf.errors.OpError, TypeError, RuntimeError
        if repeats.faults <= MOST_FAULTS and isinstance(error, kinds):
            return None
        return failures.described(error, worker, address)

    def of_loss(self, worker: int, error: BaseException, repeats: Repeats) -> BaseException | None:
        """Like `judged`, for a call whose worker is known to be lost; it waits for nobody."""
        task = Task("worker", worker)
        self._count(task)
        repeats.losses += 1
        if repeats.losses <= MOST_LOSSES:
            return None
        why = f"a function has lost its worker {repeats.losses} times, last {task}"
        return failures.unavailable(
            errors.TaskLost(
                f"{why} ({self._members.address(task)}); look whether it brings the worker's "
                "process down"
            ),
            error,
        )

    def _count(self, task: Task) -> None:
        """Counts a worker's loss in TensorFlow's metric, once, however many calls it ends."""
        with self._lock:
            life = self._members.life(task)
            counted = self._counted.get(task) == life
            self._counted[task] = life
        if not counted:
            _tf.count("worker_failures")

    def of_copy(self, error: tf.errors.OpError) -> BaseException:
        """Returns the error of copying a value to the chief as the chief's code should see it."""
        if not failures.is_of_network(error):
            return failures.described(error, None, "")
        self._members.suspect()
        lost = self._members.settle(timeout=_SETTLE)
        if gone := self.lost_ps(lost):
            return failures.unavailable(gone, error)
        if not lost:
            return failures.described(error, None, "")
        return self.of_value(lost, errors.summary(error.message), error)

    def of_value(
        self, lost: Iterable[Task], said: str, error: BaseException | None = None
    ) -> BaseException:
        """Returns the error for a per-worker value that is not there now.

        Args:
          lost: the lost tasks, its worker among them.
          said: what is known of the loss.
          error: what was raised when the value was asked for, if it was.
        """
        names = [f"{task} ({self._members.address(task)})" for task in sorted(lost)]
        return failures.unavailable(
            errors.TaskLost(
                f"the value is lost with its worker ({' and '.join(names)}: {said}); it is made "
                "again when the worker is back"
            ),
            error,
        )

    def of_result(self, worker: int, error: BaseException) -> BaseException:
        """Returns the error for a result that is lost and is not computed again.

        Args:
          worker: index of the worker that held it.
          error: what was raised when the result was asked for.
        """
        address = self._members.address(Task("worker", worker))
        return failures.unavailable(
            errors.TaskLost(
                f"the result is lost with its worker (worker {worker}, {address}), and is not "
                "computed again, because another function has failed or the coordinator has "
                "stopped; schedule the function again"
            ),
            error,
        )

    @contextlib.contextmanager
    def errors_named(self) -> Iterator[None]:
        """Names TensorFlow's errors of copying per-worker values to the chief.

        Raises:
          TaskLost: the worker that held the value is lost; a `tf.errors.UnavailableError` too.
          Error: no server is gone; also an instance of TensorFlow's class.
        """
        self._members.attend()
        try:
            yield
        except tf.errors.OpError as e:
            if isinstance(e, errors.Error):
                raise
            raise self.of_copy(e) from e

    def lost_ps(self, lost: frozenset[Task], since: float = 0.0) -> errors.TaskLost | None:
        """Returns the error for lost parameter servers; None if there are none.

        Args:
          lost: all lost tasks.
          since: losses that were noticed before this time (`time.monotonic`, in s) do not count.
        """
        gone = []
        for task in sorted(lost):
            loss = self._members.loss(task)
            if task.job == "ps" and loss is not None and loss.noticed >= since:
                gone.append(f"{task} ({self._members.address(task)}) {loss.why}")
        if not gone:
            return None
        return errors.TaskLost(
            f"{' and '.join(gone)}; its variables are lost: when it is back, make them anew, from "
            "the last checkpoint if there is one"
        )


def cancelled(why: str = "It did not run, because another one failed.") -> tf.errors.CancelledError:
    """Returns the error of a function that another one's error has ended."""
    said = f"The corresponding function is cancelled. Please reschedule the function. ({why})"
    return tf.errors.CancelledError(None, None, said)


def not_repeated() -> tf.errors.CancelledError:
    """Returns the error of a function that would be run again, if another had not failed."""
    return cancelled(
        "Its worker or a connection failed while it ran, so that it may have run in part, and it "
        "is not run again, because another one failed."
    )
