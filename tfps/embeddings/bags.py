"""Bags of ids: several rows, with weights, become one."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfps import errors

COMBINERS = ("sum", "mean", "sqrtn")


def checked(combiner: str | None) -> str | None:
    """The combiner itself.

    Raises:
      ConfigError: there is no such combiner.
    """
    if combiner is not None and combiner not in COMBINERS:
        raise errors.ConfigError(
            f"combiner={combiner!r} must be None or one of {', '.join(map(repr, COMBINERS))}"
        )
    return combiner


def valid(inputs: Any, mask: Any, mask_zero: bool) -> Any:
    """Which ids stand for one: bool of the shape of `inputs`, or of its flat values; None for all.

    Args:
      inputs: of a layer's call.
      mask: what the call was given.
      mask_zero: whether the id 0 stands for none.
    """
    if not mask_zero or inputs.dtype == tf.string:
        return mask
    if isinstance(inputs, tf.RaggedTensor):
        return tf.not_equal(inputs.flat_values, 0)
    own = tf.not_equal(inputs, 0)
    return own if mask is None else tf.logical_and(own, mask)


class Bag(NamedTuple):
    """The ids of a lookup, and how their rows are put together.

    Attributes:
      ids: integers or strings whose rows are looked up.
      combiner: see `HashEmbedding`.
      weights: float32 of the shape of `ids`, or None for 1.
      ragged: the input, if it was ragged; `ids` are its flat values then.
    """

    ids: tf.Tensor
    combiner: str | None
    weights: tf.Tensor | None
    ragged: tf.RaggedTensor | None

    @classmethod
    def of(cls, inputs: Any, weights: Any, mask: Any, combiner: str | None) -> "Bag":
        """Reads the arguments of a layer's call; see `HashEmbedding.call`.

        Raises:
          ConfigError: the ids are ragged, or have weights, and there is no combiner.
        """
        ragged = inputs if isinstance(inputs, tf.RaggedTensor) else None
        if combiner is None:
            if ragged is not None or weights is not None:
                raise errors.ConfigError(
                    "combiner=None has a row for each id, which ragged or weighted ids do not go "
                    'with; set combiner="sum", "mean" or "sqrtn"'
                )
            return cls(tf.convert_to_tensor(inputs), None, None, None)
        if isinstance(weights, tf.RaggedTensor):
            weights = weights.flat_values
        ids = tf.convert_to_tensor(inputs if ragged is None else ragged.flat_values)
        if mask is not None:
            kept = tf.cast(mask, tf.float32)
            weights = kept if weights is None else kept * tf.cast(weights, tf.float32)
        return cls(ids, combiner, weights, ragged)

    def combined(self, rows: tf.Tensor) -> tf.Tensor:
        """One row for each bag; the rows themselves without a combiner.

        The mean of a bag divides the sum by the weights, "sqrtn" by the root of the sum of their
        squares, as `tf.nn.embedding_lookup_sparse` does. The row of an empty bag is zero.

        Args:
          rows: [*shape of `ids`, width].
        """
        if self.combiner is None:
            return rows
        weights = self.weights
        weights = tf.ones_like(rows[..., 0]) if weights is None else tf.cast(weights, rows.dtype)
        total = self._sum(rows * weights[..., None])
        if self.combiner == "sum":
            return total
        if self.combiner == "mean":
            divisor = self._sum(weights)
        else:
            divisor = tf.sqrt(self._sum(weights * weights))
        return tf.math.divide_no_nan(total, divisor[..., None])

    def _sum(self, values):
        axis = self.ids.shape.rank - 1
        if self.ragged is None:
            return tf.reduce_sum(values, axis)
        nested = self.ragged.with_flat_values(values)
        return tf.reduce_sum(nested, axis=self.ragged.ragged_rank)
