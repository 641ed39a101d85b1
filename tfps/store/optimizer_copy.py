"""The Keras optimizer on the chief, beside the optimizers on the servers: which state is which."""

from collections.abc import Mapping
from types import MappingProxyType

import keras
import tensorflow as tf

from tfps import _keras_optimizers, _keras_variables as contents
from tfps.model import optimizer_traits
from tfps.model.loss_scale import LossScale
from tfps.model.optimizer_set import AnyOptimizer, OptimizerSet
from tfps.store.columns import Column, Scalars, ServerVariable, Updates, Writer
from tfps.store.growing import GrowingColumn, GrowingTable
from tfps.store.model_copy import ModelCopy
from tfps.store.plan import Plan
from tfps.store.remote_variable import RemoteVariable
from tfps.store.server_state import Placed


class OptimizerCopy:
    """Links the state of a model's optimizer to what the servers keep.

    Slots of variables that are too large for the chief stay on the servers. The chief's variables
    for them hold a `RemoteVariable`.

    Attributes:
      updates: how many updates the optimizer has applied.
    """

    def __init__(
        self,
        plan: Plan,
        optimizer: AnyOptimizer | None,
        placed: Placed,
        loss_scale: LossScale | None,
        writer: Writer,
        copy: ModelCopy,
        growing: Mapping[int, GrowingTable] = MappingProxyType({}),
    ):
        """Finds the state on the servers, and links what the optimizer has of it.

        Args:
          plan: of the store.
          optimizer: what the model was compiled with, or several; None for evaluation alone.
          placed: the servers' optimizers, each with its buckets.
          loss_scale: on the servers, or None.
          writer: of the store.
          copy: to which the links are added.
          growing: variable -> its table on the servers, for those that grow.
        """
        self._plan, self._optimizer, self._copy = plan, optimizer, copy
        self._trainable = plan.variables[: plan.num_trainable]
        scalars: dict[str, list[tuple[int, ServerVariable]]] = {}
        slots: dict[str, dict[int, ServerVariable]] = {}
        for one, mine in placed:
            for variable, (k, name) in zip(one.state, one.state_names, strict=True):
                if k is None:
                    scalars.setdefault(name, []).append((plan.buckets[mine[0]].ps, variable))
                else:
                    slots.setdefault(name, {})[mine[k]] = variable
        self._scalars = {name: Scalars(held, writer) for name, held in scalars.items()}
        self._columns = {name: Column(plan, held, writer) for name, held in slots.items()}
        self._remote = self._remote_slots(slots)
        self._growing = {
            (i, name): GrowingColumn(table, name)
            for i, table in growing.items()
            for name in table.names
        }
        variables = loss_scale.variables if loss_scale else []
        self._scale = [Scalars([(0, v)], writer) for v in variables]
        self.updates = Updates(self._scalars.get("iterations"))
        self.link()

    def build(self) -> None:
        """Builds the optimizers that are not, with slots that take no memory.

        Raises:
          ValueError: Keras's own, if one was built for other variables.
        """
        for optimizer in optimizers_of(self._optimizer):
            mine = self._plan.optimized
            if isinstance(self._optimizer, OptimizerSet) and optimizer is not self._optimizer.whole:
                k = self._optimizer.optimizers.index(optimizer)
                mine = [self._trainable[i] for i in self._optimizer.owned(k)]
            if not optimizer.built and mine:
                contents.build_without_memory(optimizer, mine)
        self.link()
        for state in [v for one in optimizers_of(self._optimizer) for v in one.variables]:
            if not contents.is_unset(state) or self._copy.has(state):
                continue
            # The servers keep no slots of a variable that has no gradient.
            if owner := self._averaged().get(id(state)):
                contents.fill(state, owner.value)
            contents.initialize(state)

    def link(self) -> None:
        """Links all state of the optimizers that exists by now.

        Raises:
          ValueError: Keras's own, if one was built for other variables.
        """
        if self._optimizer is None:
            return
        several = isinstance(self._optimizer, OptimizerSet)
        for k, (one, mine) in enumerate(
            optimizer_traits.owned(self._optimizer, len(self._trainable))
        ):
            if one.built:
                _keras_optimizers.require_known(one, [self._trainable[i] for i in mine])
            self._link(one, f"{k}/" if several else "")
        whole = optimizer_traits.whole(self._optimizer)
        if several and whole is not None:
            for _, name, state in _keras_optimizers.slots_of(
                optimizer_traits.inner(whole), alone=True
            ):
                if name == "iterations":
                    self._copy.add(state, self.updates)
        if self._scale and whole is not None and whole.built:
            own = (whole.dynamic_scale, whole.step_counter)
            for state, source in zip(own, self._scale, strict=True):
                self._copy.add(state, source, is_slot=True)

    def _link(self, optimizer: keras.optimizers.Optimizer, prefix: str) -> None:
        """Links the state of one optimizer.

        Args:
          optimizer: one that updates weights.
          prefix: of the names of its state that belongs to no variable.
        """
        index = {id(v): i for i, v in enumerate(self._trainable)}
        rate = _keras_optimizers.learning_rate_of(optimizer)
        if isinstance(rate, keras.Variable) and f"{prefix}learning_rate" in self._scalars:
            self._copy.add(rate, self._scalars[f"{prefix}learning_rate"])
        for owner, name, state in _keras_optimizers.slots_of(optimizer):
            i = None if owner is None else index.get(id(owner))
            if owner is None and name == "iterations" and not prefix:
                self._copy.add(state, self.updates)
            elif owner is None and prefix + name in self._scalars:
                self._copy.add(state, self._scalars[prefix + name], is_slot=True)
            elif i is not None and (i, name) in self._growing:
                self._copy.add(state, self._growing[i, name], i, is_slot=True)
            elif (i, name) in self._remote:
                self._put_on_servers(state, self._remote[i, name])
            elif name in self._columns and i in self._columns[name].variables():
                self._copy.add(state, self._columns[name], i, is_slot=True)

    def _averaged(self) -> dict[int, keras.Variable]:
        """`id` of a moving average -> the model variable of which it is."""
        return {
            id(state): owner
            for one in optimizer_traits.each(self._optimizer)
            for owner, name, state in _keras_optimizers.slots_of(one)
            if owner is not None and name == "model_variables_moving_average"
        }

    def _remote_slots(self, slots) -> dict[tuple[int | None, str], RemoteVariable]:
        """(variable that is too large for the chief, name of a slot) -> the slot."""
        found: dict[tuple[int | None, str], RemoteVariable] = {}
        for i, large in self._plan.remote.items():
            buckets = [b for b, one in enumerate(self._plan.buckets) if one.shards[0].variable == i]
            for name, held in slots.items():
                parts = [_tf_variable(held[b]) for b in buckets if b in held]
                if [tuple(p.shape) for p in parts] == [tuple(p.shape) for p in large.parts]:
                    found[i, name] = large.like(parts, name)
        return found

    def _put_on_servers(self, state: keras.Variable, slot: RemoteVariable) -> None:
        """Lets a slot of the chief be on the servers, where it goes on from what it was."""
        before = contents.content(state)
        if before is slot:
            return
        if isinstance(before, RemoteVariable):
            slot.before_writing()
            for part, old in zip(slot.parts, before.parts, strict=True):
                part.assign(old.read_value())
        elif before is not None:
            slot.assign(before)
        contents.put(state, slot)


def optimizers_of(optimizer: AnyOptimizer | None) -> list[keras.optimizers.Optimizer]:
    """The Keras optimizers that a model's program knows of, without what is inside of them."""
    if optimizer is None:
        return []
    whole = optimizer_traits.whole(optimizer)
    if whole is None:
        return list(optimizer_traits.each(optimizer))
    inside = {id(one) for one in _keras_optimizers.nested(whole)}
    return [whole, *(one for one in optimizer_traits.each(optimizer) if id(one) not in inside)]


def _tf_variable(variable: ServerVariable) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable
