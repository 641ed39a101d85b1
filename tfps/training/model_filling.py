"""A plain Keras model gets the weights and the optimizer's state of a snapshot."""

from collections.abc import Sequence

import keras
import numpy as np

from tfps import _keras_optimizers, errors
from tfps.embeddings.layer import layer_of
from tfps.model import optimizer_traits
from tfps.model.stateless_model import StatelessModel
from tfps.store.growing import fill_layer
from tfps.store.server_state import OptimizerState, ServerState
from tfps.store.snapshot_reading import SavedServers

Slots = dict[str, np.ndarray]


class Filling:
    """Fills one model from snapshots of the same program.

    Variables are found by their paths, or by their order if paths are not unique.
    """

    def __init__(self, model: keras.Model):
        """Takes a built model; nothing is read yet.

        Args:
          model: with or without an optimizer.
        """
        self._model = model
        self._program = StatelessModel(model)
        owners = {id(v): layer_of(v) for v in self._variables}
        self._growing = {i: layer for i, layer in owners.items() if layer is not None}

    def fill(self, servers: SavedServers, optimizer: bool) -> str:
        """Brings the model to what a snapshot has.

        Nothing is changed unless all of it could be read.

        Args:
          servers: the servers' part of the snapshot.
          optimizer: whether the optimizer is filled, too, which takes as much memory as its slots.

        Returns:
          What of the tables and of the optimizer could not be filled, to follow "the model is
          filled"; empty if nothing is left out.

        Raises:
          ConfigError: the model has a variable that the snapshot does not have.
          SnapshotDamaged: a part cannot be read, or was deleted meanwhile.
        """
        saved = self._matched(servers)
        if not optimizer and not self._growing:
            self._assign(saved, servers.load_values())
            return ""
        state = servers.load()
        self._assign(saved, state.values)
        slots = self._fill_tables(saved, state)
        left_out = self._left_out(saved, state)
        if optimizer:
            left_out += self._fill_optimizer(saved, state.optimizer, slots)
        return left_out

    def is_less_than(self, servers: SavedServers) -> bool:
        """Whether the snapshot has another number of variables than the model."""
        return len(servers.form.variables) != len(self._variables)

    @property
    def _variables(self) -> list[keras.Variable]:
        return [*self._program.trainable, *self._program.state]

    def _matched(self, servers: SavedServers) -> dict[int, int]:
        """`id` of each variable of the model -> the variable's number in the snapshot."""
        variables = self._variables
        names = [v.path for v in variables]
        saved = {path: i for i, (path, _, _) in enumerate(servers.form.variables)}
        is_unique = len(set(names)) == len(names) and len(saved) == len(servers.form.variables)
        if is_unique and set(names) <= set(saved):
            numbers: Sequence[int] = [saved[name] for name in names]
        else:
            numbers = range(len(variables))
        shapes = servers.shapes
        for v, number in zip(variables, numbers, strict=True):
            # A table that grows is saved with the keys that it has.
            shape = (0, *v.shape[1:]) if id(v) in self._growing else tuple(v.shape)
            if shapes.get(number) != shape:
                raise errors.ConfigError(
                    f"the model has {v.path} of shape {tuple(v.shape)}, and the snapshot does not; "
                    "use the model of the program that wrote it"
                )
        return {id(v): number for v, number in zip(variables, numbers, strict=True)}

    def _assign(self, saved: dict[int, int], values: dict[int, np.ndarray]) -> None:
        for variable in self._variables:
            if id(variable) not in self._growing:
                variable.assign(values[saved[id(variable)]])

    def _fill_tables(self, saved: dict[int, int], state: ServerState) -> dict[int, Slots]:
        """Fills tables that grow; returns `id` of their variables -> their slots by name."""
        now = int(state.versions.max())
        return {
            i: fill_layer(layer, state.tables[saved[i]], now) for i, layer in self._growing.items()
        }

    def _left_out(self, saved: dict[int, int], state: ServerState) -> str:
        """Of which tables the model has no room for all rows."""
        said = ""
        for i, layer in self._growing.items():
            room, rows = layer.embeddings.shape[0], len(state.tables[saved[i]].meta)
            if rows > room:
                path = layer.embeddings.path
                said += f", with the {room} of {rows} rows of {path} that are named most"
        return said

    def _fill_optimizer(
        self, saved: dict[int, int], state: OptimizerState, tables: dict[int, Slots]
    ) -> str:
        optimizer = getattr(self._model, "optimizer", None)
        if optimizer is None or not state.scalars:
            return ", without an optimizer"
        if any("/" in name for name in state.scalars):
            return ", without the state of its several optimizers"
        if not optimizer.built:
            optimizer.build(self._program.optimized)
        for owner, name, variable in _keras_optimizers.slots_of(optimizer_traits.inner(optimizer)):
            if owner is None:
                held = state.scalars
            else:
                held = {**state.slots.get(saved[id(owner)], {}), **tables.get(id(owner), {})}
            if name in held:
                array = np.asarray(held[name])
                if id(owner) in self._growing:
                    # Rows without a key begin as the optimizer begins them.
                    whole, known = variable.numpy(), self._growing[id(owner)].local.keys().slots
                    whole[known] = array[known]
                    array = whole
                variable.assign(array)
        return ""
