"""What went wrong on a server: who is gone, which worker failed, and in what words."""

import functools
import re
import time

import tensorflow as tf

from tfps import errors
from tfps.cluster import sockets
from tfps.cluster.spec import Cluster

# Of a task that answers to the chief in this many s, we say that it lives.
_ANSWER = 2.0

# For this many s after an error of the network we look for who is gone: a process that
# is being killed loses its connections before it stops listening.
_LOOK = 3.0


def require_alive(cluster: Cluster, after: Exception | None = None) -> None:
    """Raises `TaskLost` with the names and addresses of servers that no longer answer.

    Args:
      cluster: to ask.
      after: the error that led to the question; after one of the network it is
        asked for a while.
    """
    deadline = time.monotonic() + (_LOOK if _of_network(after) else 0.0)
    while not (lost := _silent(cluster)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if lost:
        raise errors.TaskLost(
            f"{' and '.join(lost)} no longer answer{'s' if len(lost) == 1 else ''}; start the "
            "job again, from the last saved model if there is one"
        )


def _silent(cluster: Cluster) -> list[str]:
    return [
        f"{name} ({address})"
        for name, address in cluster.servers.items()
        if not sockets.answers(address, timeout=_ANSWER)
    ]


def _of_network(error: Exception | None) -> bool:
    if not isinstance(error, tf.errors.OpError):
        # TensorFlow cannot bind arguments whose shapes it has to ask of a task that is gone.
        return isinstance(error, TypeError)
    return isinstance(error, tf.errors.UnavailableError) or bool(
        re.search(r"connect|recvmsg|sendmsg|socket", error.message, re.IGNORECASE)
    )


def named(cluster: Cluster, worker: int, error: Exception) -> Exception:
    """The error of a worker's function as the chief's code should see it.

    Args:
      cluster: where the function ran.
      worker: index of the worker.
      error: what the function raised.

    Returns:
      For an error of TensorFlow, a `TaskLost` or a `WorkerError` that is an
      instance of TensorFlow's class too, so that `except
      tf.errors.InvalidArgumentError` goes on to work. Anything else is itself,
      with a note that names the worker.
    """
    address = cluster.spec["worker"][worker]
    if not isinstance(error, tf.errors.OpError):
        error.add_note(f"raised by a function on worker {worker} ({address})")
        return error
    try:
        require_alive(cluster, error)
    except errors.TaskLost as lost:
        return unavailable(lost, error)
    return _both(errors.WorkerError(worker, address, errors.summary(error.message)), error)


def unavailable(lost: errors.TaskLost, cause: Exception | None = None) -> Exception:
    """`lost` as a `tf.errors.UnavailableError` too, TensorFlow's word for it."""
    both = _both(lost, tf.errors.UnavailableError(None, None, str(lost)))
    both.__cause__ = cause
    return both


def _both(ours: errors.Error, theirs: tf.errors.OpError) -> Exception:
    """The message and attributes of `ours` in an instance of the classes of both."""
    kind = _joined(type(ours), type(theirs))
    both = kind.__new__(kind, *ours.args)
    both.__dict__.update({**vars(theirs), **vars(ours), "_message": str(ours)})
    both.__cause__ = theirs
    return both


@functools.cache
def _joined(ours: type, theirs: type) -> type:
    about = f"{ours.__name__}, and TensorFlow's {theirs.__name__}."
    return type(ours.__name__, (ours, theirs), {"__doc__": about, "__module__": ours.__module__})
