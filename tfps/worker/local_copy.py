"""The arithmetic of a worker's own copy of the model, for training on it."""

import keras
import tensorflow as tf

from tfps.model import optimizer_traits
from tfps.model.gradients import unscale_and_clip
from tfps.model.server_optimizer import ServerOptimizer
from tfps.model.stateless_model import StatelessModel
from tfps.store.buckets import pack
from tfps.store.pull import Puller
from tfps.store.server_state import Layout, restore_optimizers


class LocalCopy:
    """Steps on a copy, and what they changed; inside of `tf.function`s.

    A copy has a tensor for each bucket of the plan, by the bucket's index.

    Attributes:
      program, puller: the model and the traffic down.
      inner: the worker's optimizer, as variables on the chief. Every worker's state begins as
        the values of these variables, which are the servers'.
    """

    def __init__(
        self,
        program: StatelessModel,
        puller: Puller,
        optimizer: keras.optimizers.Optimizer,
        jit_compile: bool,
    ):
        """Creates the optimizer's variables.

        Args:
          program: the model.
          puller: the traffic down, which knows how variables lie in buckets.
          optimizer: the worker's.
          jit_compile: whether to compile a step with XLA.
        """
        self.program, self.puller = program, puller
        self._optimizer = optimizer
        self._buckets = puller.store.plan.buckets
        self._treatments = {i: b.kind.treatment for i, b in enumerate(self._buckets)}
        self._trained = [i for i, t in self._treatments.items() if t.trained]
        self.inner = ServerOptimizer(
            optimizer,
            [puller.store.stored[i] for i in self._trained],
            [self._buckets[i].kind.decayed for i in self._trained],
        )
        store = puller.store
        placed = [(self.inner, self._trained)]
        restore_optimizers(Layout(store.plan), placed, store.export_optimizer())
        self.step = program.devices.graph(self._step, jit_compile)

    def _step(self, values, inner, batch, metrics, number, learning_rate):
        """One training step.

        Args:
          values: the copy.
          inner: state of the worker's optimizer.
          batch: what the dataset yields.
          metrics: values before the step.
          number: int64 scalar, the step's.
          learning_rate: float32 scalar.

        Returns:
          (copy, state of the optimizer, metric values, int64 number of examples).
        """
        whole = self.puller.variables(values)
        n = len(self.program.trainable)
        trainable = [whole[i] for i in range(n)]
        state = [whole[i] for i in range(n, len(whole))]
        scale = tf.constant(optimizer_traits.static_loss_scale(self._optimizer))
        counts = [tf.cast(self.inner.count(inner), v.dtype) for v in self.program.counts]
        with self.program.devices.computing():
            trained = self.program.train(trainable, state, metrics, number, scale, batch, counts)
        gradients, _ = unscale_and_clip(self._optimizer, trained.gradients, scale)
        changed = {i: g for i, g in enumerate(gradients) if g is not None}
        assigned = {i: trainable[i] if a is None else a for i, a in enumerate(trained.assigned)}
        updated, inner = self.inner.apply(
            [
                pack([self._buckets[i]], assigned)[0]
                if self._buckets[i].kind.assigned
                else values[i]
                for i in self._trained
            ],
            inner,
            pack([self._buckets[i] for i in self._trained], changed),
            learning_rate,
        )
        after = dict(zip(self._trained, updated, strict=True))
        latest = assigned | {
            n + k: old if new is None else new
            for k, (old, new) in enumerate(zip(state, trained.state, strict=True))
        }
        written = [i for i, t in self._treatments.items() if t.state]
        packed = pack([self._buckets[i] for i in written], latest)
        after.update(zip(written, packed, strict=True))
        values = {i: after.get(i, v) for i, v in values.items()}
        return values, inner, trained.metrics, trained.examples

    def difference(
        self, before: dict[int, tf.Tensor], after: dict[int, tf.Tensor]
    ) -> dict[int, tf.Tensor]:
        """What is to be pushed, for each bucket that the servers do not keep frozen.

        For a trained bucket it is the pseudo-gradient (`before - after`). For the model's state it
        is the latest value, or how much was added.
        """
        pushed = {i: t for i, t in self._treatments.items() if t.pushed}
        return {i: t.change(before[i], after[i]) for i, t in pushed.items()}

    def moved(
        self,
        values: dict[int, tf.Tensor],
        difference: dict[int, tf.Tensor],
        latest: dict[int, tf.Tensor],
    ) -> dict[int, tf.Tensor]:
        """A copy after a difference, as the servers would apply it with a learning rate of 1.

        Args:
          values: the copy.
          difference: of `difference`.
          latest: another copy, whose values replace state that is no sum, such as moving averages.
        """
        return {
            i: self._treatments[i].moved(v, difference[i], latest[i]) if i in difference else v
            for i, v in values.items()
        }
