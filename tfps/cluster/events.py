"""What happens on the workers of a cluster, as `calls.WorkerCalls.next` tells it."""

from typing import Any, NamedTuple


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


class Lost(NamedTuple):
    """A worker is lost: its process, its host or its way through the network.

    Attributes:
      worker: index of the worker.
      tag: what was submitted with the call that the worker was in; None if it was in none.
      busy: whether it was in a call.
      why: what is known of the loss, in words that follow the worker's name.
    """

    worker: int
    tag: Any
    busy: bool
    why: str


class Returned(NamedTuple):
    """A lost worker answers again, in a new life that has nothing of the last one.

    Attributes:
      worker: index of the worker.
    """

    worker: int


class Leaves(NamedTuple):
    """A worker was told to end, and waits for a few seconds to be let go; see `let_go`.

    Attributes:
      worker: index of the worker.
    """

    worker: int
