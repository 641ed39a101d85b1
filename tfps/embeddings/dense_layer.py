"""The layer of Keras with bags of ids: an embedding of ids from 0 on, whose rows exist at once."""

from typing import Any

import keras
import tensorflow as tf

from tfps.embeddings import bags


@keras.saving.register_keras_serializable("tfps")
class Embedding(keras.layers.Embedding):
    """`keras.layers.Embedding`, which can put the rows of a bag of ids together.

    It is trained as Keras's own layer is, by rows where it is only looked up.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *args: Any,
        combiner: str | None = None,
        **kwargs: Any,
    ):
        """Makes a layer.

        Args:
          input_dim: number of rows.
          output_dim: size of a row.
          *args: of `keras.layers.Embedding`.
          **kwargs: of `keras.layers.Embedding`.
          combiner: "sum", "mean" or "sqrtn" to return one row for the ids of the last axis, without
            those that `mask_zero` leaves out; None to return a row for each id.

        Raises:
          ConfigError: there is no such combiner.
        """
        super().__init__(input_dim, output_dim, *args, **kwargs)
        self.combiner = bags.checked(combiner)

    def call(self, inputs: Any, weights: Any = None, mask: Any = None) -> tf.Tensor:
        """Looks up rows; see `HashEmbedding.call`.

        Args:
          inputs: integers of any shape; a `tf.RaggedTensor` with a combiner.
          weights: of the ids of a bag, of their shape; None for 1.
          mask: bool of the shape of `inputs`: which ids a combiner takes; None for all.
        """
        valid = bags.valid(inputs, mask, self.mask_zero)
        bag = bags.Bag.of(inputs, weights, valid, self.combiner)
        return bag.combined(super().call(bag.ids))

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Which ids stand for one; None without `mask_zero`, or with a combiner."""
        return None if self.combiner else super().compute_mask(inputs, mask)

    def compute_output_spec(self, inputs: Any, weights: Any = None, mask: Any = None) -> Any:
        """The shape and dtype of the rows; see `call`."""
        del weights, mask
        ragged = bool(getattr(inputs, "ragged", False)) and not self.combiner
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self.compute_dtype, ragged=ragged)

    def compute_output_shape(self, input_shape: Any, *others: Any, **named: Any) -> tuple:
        """The shape of the rows; see `call`."""
        del others, named
        shape = tuple(input_shape[:-1] if self.combiner else input_shape)
        return (*shape, self.output_dim)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "combiner": self.combiner}
