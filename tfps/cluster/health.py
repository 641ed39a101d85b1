"""What is said of calls that take too long, and of errors where a server may be gone."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence

import tensorflow as tf

from tfps import errors
from tfps.cluster import failures
from tfps.cluster.lanes import Lane
from tfps.cluster.spec import Cluster

# s that the chief waits for what it asks of parameter servers before it looks whether they live. A
# long wait is no error. A server that is gone is one, and TensorFlow may not notice it.
PATIENCE = 5.0

# s to wait, after an error, for the calls that are still under way.
DRAIN = 20.0


class Health:
    """The health of a cluster, as seen by whoever waits for calls on its workers."""

    def __init__(self, cluster: Cluster, lanes: Sequence[Lane], limit: float = math.inf):
        """Asks nobody yet.

        Args:
          cluster: whose servers are asked.
          lanes: all lanes of the cluster's workers; the caller may add to them.
          limit: s that a call may take on a worker that lives.
        """
        self.cluster = cluster
        self._lanes = lanes
        self._limit = limit

    def _taken(self) -> dict[Lane, float]:
        """Lane -> s that its present call has taken."""
        now = time.monotonic()
        begun = [(lane, lane.begun) for lane in self._lanes]
        return {lane: now - since for lane, since in begun if since is not None}

    def require_in_time(self) -> None:
        """Raises `StepTimeout` if a call takes longer than the limit."""
        for lane, seconds in self._taken().items():
            if seconds > self._limit:
                address = self.cluster.spec["worker"][lane.worker]
                raise errors.StepTimeout(
                    f"worker {lane.worker} ({address}) answers, but has not finished a call for "
                    f"{seconds:.0f} s; look at what its input waits for, or give tfps.Trainer a "
                    f"step_timeout above {self._limit:g}"
                )

    @contextlib.contextmanager
    def errors_named(self) -> Iterator[None]:
        """Names TensorFlow's errors of what the chief itself asks of servers.

        Raises:
          TaskLost: a server is gone; the error is an instance of TensorFlow's class too, as is
            every error that is raised here.
          Error: no server is gone.
        """
        try:
            yield
        except tf.errors.OpError as e:
            if isinstance(e, errors.Error):
                raise
            raise failures.named(self.cluster, e) from e

    def named(self, worker: int, error: BaseException) -> BaseException:
        """Returns the error of a call on a worker as the chief's code should see it.

        Args:
          worker: index of the worker.
          error: what the call raised.
        """
        # The error of an argument that another call made has a name already.
        if isinstance(error, errors.Error):
            return error
        return failures.named(self.cluster, error, worker)
