"""What a `fit` that goes back to a snapshot needs to know of the epochs that it had begun."""

from typing import Any

from tfps.model import optimizer_traits
from tfps.model.optimizer_set import AnyOptimizer


class NotedEpochs:
    """The epochs of a `fit`, whose hooks are not called again if training goes back.

    Attributes:
      logs: epoch -> its logs as the history has them, once its hooks have been called.
    """

    def __init__(self) -> None:
        """Starts without epochs."""
        self.logs: dict[int, dict[str, Any]] = {}
        self._rates: dict[int, float] = {}

    def begin(self, epoch: int, optimizer: AnyOptimizer | None, from_start: bool) -> None:
        """Notes the learning rate with which an epoch begins, or sets it if the epoch began before.

        Args:
          epoch: index.
          optimizer: of the model.
          from_start: whether the epoch begins with its first batch.
        """
        rate = None if optimizer is None else optimizer_traits.assigned_rate(optimizer)
        if rate is None or not from_start:
            return
        if epoch in self._rates:
            optimizer_traits.each(optimizer)[0].learning_rate = self._rates[epoch]
        self._rates.setdefault(epoch, rate)
