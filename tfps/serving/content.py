"""What a model knows, as arrays: its weights, and the keys and rows of its tables that grow."""

from typing import NamedTuple, TypeAlias

import keras
import numpy as np

from tfps import errors
from tfps.embeddings.layer import HashEmbedding, layer_of
from tfps.model.stateless_model import StatelessModel
from tfps.training.trainer import Trainer

Source: TypeAlias = keras.Model | Trainer


class Rows(NamedTuple):
    """A table that grows.

    Attributes:
      keys: int64 [n], ascending.
      rows: float32 [n, width], in their order.
    """

    keys: np.ndarray
    rows: np.ndarray

    @classmethod
    def ordered(cls, keys: np.ndarray, rows: np.ndarray) -> "Rows":
        """Of keys in any order."""
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], rows[order])


class Content(NamedTuple):
    """What is served.

    Attributes:
      weights: of the model, without its tables that grow.
      tables: those.
    """

    weights: list[np.ndarray]
    tables: list[Rows]


class Variables(NamedTuple):
    """The variables of a model, in the order of a `Content`.

    Attributes:
      program: the model as pure functions.
      weights: indices among its trainable variables and its state.
      tables: likewise, of tables that grow.
    """

    program: StatelessModel
    weights: list[int]
    tables: list[int]

    @classmethod
    def of(cls, model: keras.Model) -> "Variables":
        """The variables of a built model.

        Raises:
          ConfigError: the model is not built.
        """
        if not model.built:
            raise errors.ConfigError(
                f"{model.name} is not built, so it has no weights to serve; train it, or call it "
                "on a batch before"
            )
        program = StatelessModel(model)
        grows = [layer_of(v) is not None for v in [*program.trainable, *program.state]]
        places = range(len(grows))
        return cls(program, [i for i in places if not grows[i]], [i for i in places if grows[i]])

    @property
    def every(self) -> list[keras.Variable]:
        """The trainable variables, then the state."""
        return [*self.program.trainable, *self.program.state]

    def layer(self, i: int) -> HashEmbedding:
        """The layer of a table."""
        layer = layer_of(self.every[i])
        assert layer is not None
        return layer

    def content(self, source: Source) -> Content:
        """What `source`, the model or its trainer, knows now."""
        every = self.every
        find = source.table if isinstance(source, Trainer) else HashEmbedding.table
        weights = [np.asarray(every[i].numpy()) for i in self.weights]
        return Content(weights, [Rows.ordered(*find(self.layer(i))) for i in self.tables])


def model_of(source: Source) -> keras.Model:
    """The model that `source` is or has.

    Raises:
      ConfigError: it is neither a model nor a trainer.
    """
    if isinstance(source, Trainer):
        return source.model
    if isinstance(source, keras.Model):
        return source
    raise errors.ConfigError(
        f"{type(source).__name__} is neither a keras.Model nor a tfps.Trainer; give one of them"
    )
