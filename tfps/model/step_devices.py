"""On which of its devices a worker computes what of a step."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfps import _keras_placement, _tf_placement, _tf_tracing
from tfps.cluster.devices import WorkerDevices
from tfps.model.split_calls import SplitCalls

_JOB = "/job:worker"


class StepDevices:
    """Where the parts of a step run, inside of `tf.function`s.

    On one device a step is one graph there. On several devices the model's call is split, or the
    model's layers are where the model says; gradients are computed where the forward pass was.

    Attributes:
      of_worker: the devices, or None for a model that runs eagerly, on the chief.
    """

    def __init__(
        self,
        model: keras.Model,
        seeds: set[int],
        of_worker: WorkerDevices | None,
        layers: Mapping[int, str],
        compiles: bool,
    ):
        """Leaves the model alone.

        Args:
          model: compiled.
          seeds: `id`s of the states of its random generators.
          of_worker: see the attribute.
          layers: `id` of a layer -> its device.
          compiles: whether XLA compiles the call on each of several devices.
        """
        self._model, self.of_worker, self._layers = model, of_worker, layers
        self._split: SplitCalls | None = None
        if of_worker is not None and len(of_worker.computing) > 1:
            self._split = SplitCalls(model, seeds, of_worker.computing, compiles)

    @property
    def host(self) -> str | None:
        """See `WorkerDevices`; None stands for the device in scope."""
        return None if self.of_worker is None else self.of_worker.host

    def graph(self, function: Callable[..., Any], jit_compile: bool) -> Callable[..., Any]:
        """A function as a graph of its own on the host.

        Args:
          function: what computes a step; the model's part of it is in `computing`.
          jit_compile: whether XLA compiles the graph, if it is on one device. On several devices
            XLA compiles each device's call.
        """
        whole = self.of_worker is None or self.of_worker.is_one
        graph = tf.function(function, jit_compile=jit_compile and whole, autograph=False)

        def on_host(*args: Any) -> Any:
            with tf.device(self.host) if self.host else contextlib.nullcontext():
                return graph(*args)

        return on_host

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """A context in which the model computes a step, its gradients included."""
        with contextlib.ExitStack() as stack:
            devices = self.of_worker
            if devices is not None and not devices.is_one:
                main = devices.computing[0]
                stack.enter_context(tf.device(main))
                stack.enter_context(_tf_placement.gradients_stay(_JOB, (main, devices.host)))
            stack.enter_context(_tf_tracing.python_on_chief())
            stack.enter_context(self._calls(inline=False))
            yield

    def looking(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the model is only looked at, and its calls come in the same order."""
        return self._calls(inline=True)

    @contextlib.contextmanager
    def _calls(self, inline: bool) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self._split is not None:
                stack.enter_context(self._split.active(inline))
            if self._layers and not inline:
                stack.enter_context(_keras_placement.calls_on(self._model, self._layers))
            yield
