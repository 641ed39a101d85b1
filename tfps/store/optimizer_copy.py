"""The Keras optimizer on the chief, beside the optimizers on the servers: which state is which."""

import keras
import tensorflow as tf

from tfps import _keras, _keras_variables as contents
from tfps.model import optimizer_traits
from tfps.model.loss_scale import LossScale
from tfps.store.columns import Column, Scalars, ServerVariable, Updates, Writer
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
        optimizer: keras.optimizers.Optimizer | None,
        placed: Placed,
        loss_scale: LossScale | None,
        writer: Writer,
        copy: ModelCopy,
    ):
        """Finds the state on the servers, and links what the optimizer has of it.

        Args:
          plan: of the store.
          optimizer: what the model was compiled with; None for evaluation alone.
          placed: the servers' optimizers, each with its buckets.
          loss_scale: on the servers, or None.
          writer: of the store.
          copy: to which the links are added.
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
        variables = loss_scale.variables if loss_scale else []
        self._scale = [Scalars([(0, v)], writer) for v in variables]
        self.updates = Updates(self._scalars.get("iterations"))
        self.link()

    def build(self) -> None:
        """Builds the optimizer, if that has not been done, with slots that take no memory.

        Raises:
          ValueError: Keras's own, if it was built for other variables.
        """
        if self._optimizer is not None and not self._optimizer.built:
            contents.build_without_memory(self._optimizer, list(self._trainable))
        self.link()
        for owner, name, state in self._slots():
            if not contents.is_unset(state) or self._copy.has(state):
                continue
            # The servers keep no slots of a variable that has no gradient.
            if owner is not None and name == "model_variables_moving_average":
                contents.fill(state, owner.value)
            contents.initialize(state)

    def link(self) -> None:
        """Links all state of the optimizer that exists by now.

        Raises:
          ValueError: Keras's own, if the optimizer was built for other variables.
        """
        if self._optimizer is None:
            return
        if self._optimizer.built:
            _keras.require_known(optimizer_traits.inner(self._optimizer), self._trainable)
        index = {id(v): i for i, v in enumerate(self._trainable)}
        for owner, name, state in self._slots():
            i = None if owner is None else index.get(id(owner))
            if owner is None and name == "iterations":
                self._copy.add(state, self.updates)
            elif owner is None and name in self._scalars:
                self._copy.add(state, self._scalars[name], is_slot=True)
            elif (i, name) in self._remote:
                self._put_on_servers(state, self._remote[i, name])
            elif name in self._columns and i in self._columns[name].variables():
                self._copy.add(state, self._columns[name], i, is_slot=True)
        if self._scale and self._optimizer.built:
            own = (self._optimizer.dynamic_scale, self._optimizer.step_counter)
            for state, source in zip(own, self._scale, strict=True):
                self._copy.add(state, source, is_slot=True)

    def _slots(self) -> list[tuple[keras.Variable | None, str, keras.Variable]]:
        if self._optimizer is None:
            return []
        return _keras.slots_of(optimizer_traits.inner(self._optimizer))

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
            for part, old in zip(slot.parts, before.parts, strict=True):
                part.assign(old.read_value())
        elif before is not None:
            slot.assign(before)
        contents.put(state, slot)


def _tf_variable(variable: ServerVariable) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable
