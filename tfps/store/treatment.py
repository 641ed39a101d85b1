"""How the values of a bucket change in training: by an optimizer, by the model itself, or never."""

import abc
from typing import Any, ClassVar, NamedTuple

import keras
import tensorflow as tf

from tfps.compression import Codec, Identity
from tfps.model.optimizer_set import ONCE
from tfps.store.resources import read


class Treatment(abc.ABC):
    """What workers and servers do with a bucket.

    The plan gives every bucket one of the six treatments below when it is made. Pull, push,
    aggregation and the workers' local copies then ask the treatment and compare no names.

    Attributes:
      trained: whether an optimizer updates the values.
      by_rows: whether the optimizer updates only those rows of a table that a step looked up.
      pushed: whether a step sends anything that concerns the values.
      state: whether the values belong to the model's state, which a step computes itself.
    """

    trained: ClassVar[bool] = False
    by_rows: ClassVar[bool] = False
    pushed: ClassVar[bool] = True
    state: ClassVar[bool] = False

    def averaged(self, dtype: tf.DType | str) -> bool:
        """Whether a round replaces values of this dtype by the mean of what its workers sent."""
        del dtype
        return False

    @abc.abstractmethod
    def change(self, before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
        """What a worker pushes after it changed its copy of the values.

        Args:
          before, after: the worker's copy before and after its steps, of one shape.
        """

    @abc.abstractmethod
    def moved(self, value: tf.Tensor, change: tf.Tensor, latest: tf.Tensor) -> tf.Tensor:
        """A value after a change, as the servers make it with a learning rate of 1.

        Args:
          value: the values to move.
          change: of `change`.
          latest: the copy from which the change was computed, after its steps.
        """

    def write(
        self, handle: tf.Tensor, dtype: str, shape: tuple[int, ...], value: tf.Tensor
    ) -> tf.Operation:
        """Makes the change that was pushed; it is how the model's state is written.

        The caller enters the ps's device and holds its lock.

        Args:
          handle: resource handle of the bucket.
          dtype, shape: of the bucket.
          value: what was pushed, decoded; of `change`.
        """
        old = read(handle, dtype, shape)
        return tf.raw_ops.AssignVariableOp(resource=handle, value=self.moved(old, value, value))

    def __repr__(self) -> str:
        return type(self).__name__.removeprefix("_").upper()


class _Train(Treatment):
    trained = True

    def change(self, before, after):
        return before - after

    def moved(self, value, change, latest):
        del latest
        return value - change


class _Rows(_Train):
    by_rows = True


class _Last(Treatment):
    state = True

    def averaged(self, dtype):
        return tf.as_dtype(dtype).is_floating

    def change(self, before, after):
        del before
        return after

    def moved(self, value, change, latest):
        del value, change
        return latest


class _Sum(Treatment):
    state = True

    def change(self, before, after):
        return after - before

    def moved(self, value, change, latest):
        del latest
        return value + change

    def write(self, handle, dtype, shape, value):
        del dtype, shape
        return tf.raw_ops.AssignAddVariableOp(resource=handle, value=value)


class _Added(_Sum):
    def averaged(self, dtype):
        return tf.as_dtype(dtype).is_floating


class _Frozen(Treatment):
    pushed = False

    def change(self, before, after):
        del after
        return tf.zeros_like(before)

    def moved(self, value, change, latest):
        del change, latest
        return value


# TRAIN and ROWS are updated by the optimizer, as a whole or by rows. Of the model's state, LAST is
# replaced by the value of the last writer, and differences are added to SUM and to ADDED, to ADDED
# their mean if they come in a round. FROZEN never changes.
TRAIN, ROWS, LAST, SUM, ADDED, FROZEN = _Train(), _Rows(), _Last(), _Sum(), _Added(), _Frozen()

TREATMENTS: tuple[Treatment, ...] = (TRAIN, ROWS, LAST, SUM, ADDED, FROZEN)


def state_treatment(variable: keras.Variable, is_added_to: bool) -> Treatment:
    """How concurrent updates of a non-trainable variable combine.

    Integers and variables that declare `aggregation="sum"` are counters: the differences add up,
    so none is lost. So do those of floating values to which a step only adds. A round is one step
    on the batches of its workers together, so what it adds to a floating value is their mean.
    Other values are replaced, and the last writer wins. So what is stored is always a value that
    some worker's model computed. A sum of differences of averages could leave the range of the
    averages.

    Args:
      variable: the variable.
      is_added_to: whether a step does nothing with the variable but to add what does not depend on
        the model's state.
    """
    floats = tf.as_dtype(variable.dtype).is_floating
    counts = not floats and variable.dtype != "bool"
    if counts or getattr(variable, "aggregation", None) == "sum":
        return SUM
    return ADDED if floats and is_added_to else LAST


class Kind(NamedTuple):
    """What the shards of a bucket have in common; only equal kinds share a bucket.

    Attributes:
      treatment: how the values change.
      push, pull: the codecs of what is pushed and of what is pulled.
      decayed: whether the optimizer's weight decay applies.
      constraint: the Keras constraint, or None if there is none.
      owner: the index of the optimizer in a set; 0 if the model has one optimizer.
      calls: which calls of the optimizer's `apply` in a step concern the shards; see
        `OptimizerSet`.
      assigned: whether a step also assigns values, so that a push has two parts: the gradient, and
        how far the assignment moves the values before the optimizer updates them.
    """

    treatment: Treatment
    push: Codec = Identity()
    pull: Codec = Identity()
    decayed: bool = False
    constraint: Any = None
    owner: int = 0
    calls: tuple[int, ...] = ONCE
    assigned: bool = False
