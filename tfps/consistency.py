"""When a worker may take its next step.

A policy is a small object that the trainer asks before it hands a step to a
worker. It is plain Python: no tensors, no servers.
"""

from collections.abc import Sequence


class Async:
    """No worker ever waits for another.

    Each pulls, computes and pushes at its own pace; a push may therefore have
    been computed on weights that others have changed since. With N equal
    workers a gradient misses N - 1 updates on average (Dean et al., "Large
    Scale Distributed Deep Networks", 2012).
    """

    def may_start(self, worker: int, steps: Sequence[int]) -> bool:
        """Whether the worker may take a step now.

        Args:
          worker: its index.
          steps: per worker, the steps it has completed.
        """
        del worker, steps
        return True
