"""What went wrong on a server: who is gone, which worker failed, and in what words."""

import contextlib
import copyreg
import re
import sys
import time
from collections.abc import Collection
from typing import Any

import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster import members, sockets
from tfps.cluster.members import Task
from tfps.cluster.spec import Cluster

# How errors of TensorFlow's runtime speak of a task that died, is gone, or came back, in version
# 2.21. The classes alone do not tell them from errors of the user's functions.
_OF_RUNTIME = re.compile(
    r"connect|recvmsg|sendmsg|socket|transport|context_id|unknown device|invalid device"
    r"|incarnation|primary device is not remote|tensor remote_handle|remote workers"
    r"|name of a function registered|function library|keepalive",
    re.IGNORECASE,
)
_KINDS = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)

# A task that accepts a connection of the chief within so many s is said to live.
_ANSWER = 2.0

# For so many s after an error of the network, the chief looks for who is gone. A process that is
# being killed loses its connections before it stops listening.
_LOOK = 3.0


def require_alive(
    cluster: Cluster, after: BaseException | None = None, workers: Collection[int] = ()
) -> None:
    """Asks the parameter servers whether they live, and the workers that are concerned.

    A worker that does not live is no reason to end what other tasks do.

    Args:
      cluster: whose servers are asked.
      after: the error that led to the question. After an error of the network, servers are
        asked repeatedly for 3 s; otherwise once.
      workers: indices of the workers that are asked, too.

    Raises:
      TaskLost: names the servers that no longer answer, with addresses.
    """
    deadline = time.monotonic()
    if after is not None and is_of_network(after):
        # A process that has taken another one's place answers as well.
        members.of(cluster).suspect()
        deadline += _LOOK
    while not (lost := _silent(cluster, workers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if lost:
        raise errors.TaskLost(
            f"{' and '.join(lost)} no longer answer{'s' if len(lost) == 1 else ''}; start the "
            "job again, from the last saved model if there is one"
        )


def _silent(cluster: Cluster, workers: Collection[int]) -> list[str]:
    asked = [(Task("worker", w), cluster.spec["worker"][w]) for w in workers]
    asked += [(Task("ps", p), address) for p, address in enumerate(cluster.spec["ps"])]
    # A frozen process accepts connections.
    lost = members.of(cluster).lost()
    return [
        f"{task} ({address})"
        for task, address in asked
        if task in lost or not sockets.answers(address, timeout=_ANSWER)
    ]


def say(line: str, who: str = "tfps") -> None:
    """Tells whoever runs the program of something, such as what became of a task.

    Args:
      line: what is said.
      who: comes before it; "" for nobody.
    """
    with contextlib.suppress(OSError, ValueError):  # Nobody may be left to be told.
        print(f"{who}: {line}" if who else line, file=sys.stderr, flush=True)


def is_of_network(error: BaseException) -> bool:
    """Returns whether an error may come from a task that is lost, rather than from a function.

    A task that was started anew has nothing of what was made for this process.
    """
    if isinstance(error, RuntimeError):
        # So a copy of a tensor to a task fails, whatever the reason.
        return bool(_OF_RUNTIME.search(str(error)))
    if not isinstance(error, tf.errors.OpError):
        # TensorFlow cannot bind arguments whose shapes it has to ask of a task that is gone.
        return isinstance(error, TypeError) and "inding inputs" in str(error)
    return isinstance(error, _KINDS) or bool(_OF_RUNTIME.search(error.message or ""))


def named(cluster: Cluster, error: BaseException, worker: int | None = None) -> BaseException:
    """Returns an error of the runtime as the chief's code should see it.

    Args:
      cluster: where the error was raised.
      error: what was raised.
      worker: index of the worker on which a call raised it; None if the chief itself did.

    Returns:
      A `TaskLost` if a ps is gone, or the worker; any worker where the chief itself met an error
      of the network, which does not say whose it is. Otherwise, for an error of TensorFlow, a
      `WorkerError` (an `Error` without a worker). Both are instances of TensorFlow's class too, so
      that `except tf.errors.InvalidArgumentError` goes on to work. Any other error is itself, with
      a note that names the worker.
    """
    concerned: Collection[int] = () if worker is None else (worker,)
    if worker is None and is_of_network(error):
        concerned = range(cluster.num_workers)
    try:
        require_alive(cluster, error, concerned)
    except errors.TaskLost as lost:
        return unavailable(lost, error)
    return described(error, worker, "" if worker is None else cluster.spec["worker"][worker])


def described(error: BaseException, worker: int | None, address: str) -> BaseException:
    """Returns an error of the runtime with the name of the worker; see `named`.

    Args:
      error: what was raised. No server is gone.
      worker: index of the worker on which a call raised it; None if the chief itself did.
      address: the worker's `host:port`.
    """
    if not isinstance(error, tf.errors.OpError):
        if worker is not None:
            error.add_note(f"raised by a function on worker {worker} ({address})")
        return error
    said = errors.summary(error.message)
    if worker is None:
        return _both(errors.Error(said), error)
    return _both(errors.WorkerError(worker, address, said), error)


def unavailable(lost: errors.TaskLost, cause: BaseException | None = None) -> BaseException:
    """Returns `lost` as a `tf.errors.UnavailableError` too, TensorFlow's class for it."""
    both = _both(lost, tf.errors.UnavailableError(None, None, str(lost)))
    both.__cause__ = cause
    return both


def of_input(error: BaseException) -> BaseException:
    """Returns the error of making a per-worker value, as whoever uses the value should see it.

    Args:
      error: what was raised while the value was made, as `named` gave it.

    Returns:
      The error as an instance of TensorFlow's `ClosureInputError` as well.
    """
    if isinstance(error, _tf.ClosureInputError):
        return error
    original = (error.__cause__ if isinstance(error, errors.Error) else None) or error
    message = original.message if isinstance(original, tf.errors.OpError) else str(original)
    said = (
        f"Input has an error, the original exception is {type(original).__name__}, error message "
        f"is {errors.summary(message)}"
    )
    if isinstance(error, errors.WorkerError):
        said = f"worker {error.worker} ({error.address}) failed: {said}"
    kind = _joined(type(error), _tf.ClosureInputError)
    raised: Any = kind.__new__(kind, said)
    raised.__dict__.update({**vars(error), "original_exception": original, "_message": said})
    raised.__cause__ = original
    return raised


def _both(ours: errors.Error, theirs: tf.errors.OpError) -> BaseException:
    """Returns the message and attributes of `ours` in an instance of the classes of both."""
    kind = _joined(type(ours), type(theirs))
    both = kind.__new__(kind, *ours.args)
    both.__dict__.update({**vars(theirs), **vars(ours), "_message": str(ours)})
    both.__cause__ = theirs
    return both


class _Joined(type):
    """The class of the classes that `_joined` makes."""


# (our class, TensorFlow's class) -> the class that derives from both.
_classes: dict[tuple[type, type], type] = {}


def _joined(ours: type, theirs: type) -> type:
    if (ours, theirs) not in _classes:
        members = {
            "__doc__": f"{ours.__name__}, and TensorFlow's {theirs.__name__}.",
            "__module__": ours.__module__,
            # `ours` may be a class of Python's, and TensorFlow's would call the class.
            "__reduce__": errors.Error.__reduce__,
        }
        _classes[ours, theirs] = _Joined(ours.__name__, (ours, theirs), members)
    return _classes[ours, theirs]


# No module has such a class under its name, so a pickle says which classes it joins.
def _parts(kind: _Joined) -> tuple[Any, tuple[type, ...]]:
    return _joined, kind.__bases__


copyreg.pickle(_Joined, _parts)
