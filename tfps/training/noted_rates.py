"""Which learning rates hooks have set: what hooks have done counts again if training goes back."""

import collections
from collections.abc import Hashable

import keras

from tfps.model import optimizer_traits

# How many changes are remembered: those since the newest snapshot count.
_MOST = 1 << 16


class NotedRates:
    """The learning rates that the hooks of batches have left, where these have changed them.

    The rates of several optimizers are on the servers, and are not noted.
    """

    def __init__(self) -> None:
        """Starts without any."""
        self._last: float | None = None
        self._rates: collections.OrderedDict[Hashable, float] = collections.OrderedDict()

    def note(self, where: Hashable, optimizer: keras.optimizers.Optimizer | None) -> None:
        """Notes the rate after a hook, if it is not the one that was noted last.

        Args:
          where: which hook of which batch.
          optimizer: of the model.
        """
        if optimizer is None or hasattr(optimizer, "optimizers"):
            return
        rate = optimizer_traits.assigned_rate(optimizer)
        if rate is not None and rate != self._last:
            self._last = self._rates[where] = rate
            if len(self._rates) > _MOST:
                self._rates.popitem(last=False)

    def set_again(self, where: Hashable, optimizer: keras.optimizers.Optimizer | None) -> None:
        """Sets the rate that was noted after a hook, which is not called again."""
        if where in self._rates and optimizer is not None:
            optimizer_traits.inner(optimizer).learning_rate = self._rates[where]
