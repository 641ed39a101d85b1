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
        self._left: dict[int, float] = {}
        self._places: dict[int, int] = {}

    def begin(self, epoch: int, optimizer: AnyOptimizer | None) -> None:
        """Notes the learning rate with which an epoch begins, after its hooks."""
        _note(self._rates, epoch, optimizer)

    def begin_again(self, epoch: int, optimizer: AnyOptimizer | None) -> None:
        """Sets that rate at the beginning of an epoch that is trained on again from its start."""
        _set(self._rates, epoch, optimizer)

    def keep(
        self,
        kept: dict[str, list[float]],
        epoch: int,
        stats: dict[str, float],
        losses: dict[str, float],
    ) -> None:
        """Adds an epoch's statistics to those that are kept, in place of what it had before.

        Args:
          kept: name -> a value for each epoch.
          epoch: index.
          stats: of the epoch.
          losses: further ones, which count: what the epoch had of them before is added.
        """
        again = epoch in self._places
        place = self._places.setdefault(epoch, len(self._places))
        for name, value in {**stats, **losses}.items():
            values = kept.setdefault(name, [])
            values[place:] = [value + (values[place] if again and name in losses else 0.0)]

    def leave(self, epoch: int, optimizer: AnyOptimizer | None) -> None:
        """Notes the learning rate that the hooks at the end of an epoch have left."""
        _note(self._left, epoch, optimizer)

    def leave_again(self, epoch: int, optimizer: AnyOptimizer | None) -> None:
        """Sets that rate at the end of an epoch that is trained on again."""
        _set(self._left, epoch, optimizer)


def _note(rates: dict[int, float], epoch: int, optimizer: AnyOptimizer | None) -> None:
    rate = None if optimizer is None else optimizer_traits.assigned_rate(optimizer)
    if rate is not None:
        rates[epoch] = rate


def _set(rates: dict[int, float], epoch: int, optimizer: AnyOptimizer | None) -> None:
    if epoch in rates:
        optimizer_traits.each(optimizer)[0].learning_rate = rates[epoch]
