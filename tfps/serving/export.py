"""A trained model as a SavedModel that needs nothing but TensorFlow."""

import os
import uuid
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfps import _keras_models
from tfps.embeddings.settings import TableSettings
from tfps.model.lookups import looking_up
from tfps.serving import taking_in
from tfps.serving.content import Source, Variables, model_of
from tfps.serving.state import ServedState


def export(source: Source, path: str | os.PathLike, input_signature: Any = None) -> None:
    """Writes a model with its tables as a SavedModel of stock operations.

    Whoever loads it needs TensorFlow and nothing else. The signature `serving_default`, and a call
    of what `tf.saved_model.load` returns, give the model's outputs with `training=False`. An id
    without a row has its initial row, and nothing is let in. `apply(path)` takes in what `delta`
    has written, and `rollback()` goes back to the state before; both return how many deltas the
    state has. They are signatures, too. Requests that run meanwhile are answered from the state
    before or from the one after, and never from parts of both.

    Rows are served in float32. All of them pass through this process.

    Args:
      source: a `tfps.Trainer`, for all rows that its servers have; or a built Keras model, for
        those that this process has (see `HashEmbedding.embeddings`). Both at any time outside of
        `fit`, and in a callback.
      path: the folder to write to.
      input_signature: nested `tf.TensorSpec`s of the arguments of the model's call, in a list; None
        for what Keras knows of the model's inputs.

    Raises:
      ConfigError: the model is not built, or its inputs are not known.
    """
    model = model_of(source)
    variables = Variables.of(model)
    if input_signature is None:
        input_signature = _keras_models.input_signature(model)
    served = Served(variables, source, uuid.uuid4().hex, input_signature)
    tf.saved_model.save(served, os.fspath(path), signatures=served.signatures())


class Served(tf.Module):
    """What is saved."""

    def __init__(
        self, variables: Variables, source: Source, export_id: str, input_signature: Sequence[Any]
    ):
        """Copies the weights, and traces the functions.

        Args:
          variables: of the model.
          source: see `export`.
          export_id: of the export.
          input_signature: see `export`.
        """
        super().__init__()
        self._model = [variables]  # In a list, which `tf.Module` does not look into.
        self._settings = [variables.layer(i).settings for i in variables.tables]
        self.state = ServedState(variables.content(source), export_id)
        self.__call__ = tf.function(
            self._outputs, input_signature=input_signature, autograph=False, jit_compile=False
        )
        where = [tf.TensorSpec([], tf.string, "path")]
        self.apply = tf.function(self._applied, input_signature=where, autograph=False)
        self.rollback = tf.function(self._rolled_back, input_signature=[], autograph=False)
        # Lookup tables of layers, and variables that no list of the model has, are saved with it.
        graph = self.__call__.get_concrete_function().graph
        own = {id(v) for v in self.state.variables}
        self.others = [v for v in graph.variables if id(v) not in own]
        self.resources = _keras_models.resources(variables.program.model)

    def signatures(self) -> dict[str, Any]:
        """Name -> function."""
        names = {"serving_default": self.__call__, "apply": self.apply, "rollback": self.rollback}
        return {name: f.get_concrete_function() for name, f in names.items()}

    def _outputs(self, *inputs):
        (variables,), view = self._model, self.state.view()
        every = variables.every
        values = dict(zip(variables.weights, view.weights, strict=True))
        for i in variables.tables:  # It is looked up alone.
            values[i] = tf.zeros(every[i].shape, every[i].dtype)
        finds = {
            i: _find(settings, keys, rows)
            for i, settings, keys, rows in zip(
                variables.tables, self._settings, view.keys, view.rows, strict=True
            )
        }
        program = variables.program
        trained = len(program.trainable)
        ordered = [values[i] for i in range(len(every))]
        with looking_up(every, finds), program.scope(ordered[:trained], ordered[trained:]):
            return _keras_models.call_with(program.model, inputs)

    def _applied(self, path):
        now = self.state.view()
        after = taking_in.taken_in(now, path, self.state.id.read_value())
        return self.state.exchange(now, after, before=now)

    def _rolled_back(self):
        now, before = self.state.view(), self.state.before()
        there = tf.debugging.Assert(
            before.number >= 0, ["there is no state before this one to go back to; apply a delta"]
        )
        with tf.control_dependencies([there]):
            before = tf.nest.map_structure(tf.identity, before)
        return self.state.exchange(now, before, before=None)


def _find(settings: TableSettings, keys: tf.Tensor, rows: tf.Tensor):
    """Answers the lookups in one table."""

    def find(wanted: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(wanted, [-1])
        there, place = taking_in.is_among(keys, flat), taking_in.places(keys, flat)
        initial = settings.initial.rows(flat, settings.width)
        found = tf.where(there[:, None], taking_in.at(rows, place), initial)
        found = tf.reshape(found, tf.concat([tf.shape(wanted), [settings.width]], 0))
        found.set_shape([*wanted.shape, settings.width])
        return found

    return find
