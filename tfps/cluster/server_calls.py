"""Calls of the chief on parameter servers, each in a thread that may be left behind."""

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import tensorflow as tf

from tfps import _tf, _tf_busy, errors
from tfps.cluster.devices import ps_device

_T = TypeVar("_T")

# s between two looks at who lives, while a call is waited for.
_LOOK = 1.0


class ServerCall(Generic[_T]):
    """A call on a ps that is under way, or over.

    Nothing can interrupt a call of TensorFlow to a server that does not answer, so whoever waits
    for it waits for a thread, and may leave that behind.

    Attributes:
      ps: index of the ps.
    """

    def __init__(
        self,
        ps: int,
        function: Callable[[], _T],
        failed: Callable[[BaseException], None] | None = None,
    ):
        """Starts the call.

        Args:
          ps: index of the ps, under whose device the function is called.
          function: the call.
          failed: called in the thread with the error that the call has raised.
        """
        self.ps = ps
        self._function: Callable[[], _T] | None = function
        self._failed = failed
        self._over = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name=f"tfps-ps-{ps}", daemon=True).start()

    def _run(self) -> None:
        assert self._function is not None
        try:
            busy = _tf_busy.busy_server()
            with tf.device(ps_device(self.ps)), _tf.own_executor(), busy:
                self._result = self._function()
        except BaseException as e:  # It belongs to whoever waits for the call.
            self._error = e
        self._function = None  # It may hold handles.
        self._over.set()
        if self._error is not None and self._failed is not None:
            self._failed(self._error)

    def result(self, deadline: float, purpose: str, look: Callable[[], None] = lambda: None) -> _T:
        """What the call returned.

        Args:
          deadline: time (`time.monotonic`, in s) until which to wait.
          purpose: what the call is for, for the error.
          look: called each second of waiting; it may raise an error that ends the wait.

        Raises:
          StepTimeout: the call was not over by then.
          Exception: the call has raised it.
        """
        while not self._over.wait(max(0.0, min(_LOOK, deadline - time.monotonic()))):
            look()
            if time.monotonic() >= deadline:
                raise errors.StepTimeout(
                    f"ps {self.ps} has not answered in time ({purpose}); look whether it is frozen "
                    "or overloaded"
                )
        if self._error is not None:
            raise self._error
        return self._result
