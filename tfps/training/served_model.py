"""A model whose variables are on the servers."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import keras

from tfps.compression import Codec
from tfps.embeddings.layer import layer_of
from tfps.model import optimizer_traits
from tfps.model.eager_inspection import inspect_eagerly
from tfps.model.inspection import inspect
from tfps.model.optimizer_set import AnyOptimizer, in_force, with_own
from tfps.model.own_inspection import inspect_own
from tfps.model.own_step import own_method
from tfps.model.stateless_model import StatelessModel
from tfps.store.growing import GrowingTable
from tfps.store.parameter_store import ParameterStore
from tfps.store.plan import Plan
from tfps.store.pull import Puller
from tfps.strategy import ParameterServerStrategy
from tfps.training.feeds import Feed
from tfps.training.input import sample_of
from tfps.training.placing import Placing

Codecs = Codec | str | Callable[[Any], Codec | str | None] | None


@dataclasses.dataclass(frozen=True)
class Traffic:
    """How a model travels: the trainer's arguments of the same names.

    Attributes:
      push, pull: codec of the gradients and of the parameters, or a function of the variable that
        gives one.
      lazy: whether only those rows of a table are updated that a step has looked up.
    """

    push: Codecs = None
    pull: Codecs = None
    lazy: bool = False


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A compiled Keras model, and everything of it that exists on the servers.

    Attributes:
      program: the model as pure functions.
      store: its variables on the servers.
      puller: the traffic down.
      optimizer: what updates the model; None if the servers hold no optimizer.
      rate: what gave its learning rate when the servers' optimizer was made, see
        `optimizer_traits.rate_of`. What is assigned after `on_train_begin` is in force later.
    """

    program: StatelessModel
    store: ParameterStore
    puller: Puller
    optimizer: AnyOptimizer | None
    rate: Any

    @property
    def trains(self) -> bool:
        """Whether the servers hold an optimizer, too."""
        return self.optimizer is not None

    @classmethod
    def create(
        cls,
        program: StatelessModel,
        strategy: ParameterServerStrategy,
        traffic: Traffic,
        feed: Feed,
        mode: str,
        placing: Placing,
        piece_bytes: int | None = None,
        before: Collection[GrowingTable] = (),
    ) -> "ServedModel":
        """Creates the variables on the servers and fills them from the model.

        Args:
          program: of a model that is built.
          strategy: connected; it is told where the variables are.
          traffic: how the model travels.
          feed: of the input.
          mode: the step to be made: "train", for which the servers need an optimizer, "test" or
            "predict".
          placing: on which devices of a worker the model runs.
          piece_bytes, before: see `ParameterStore`.

        Raises:
          ConfigError: the optimizer, the partitioner and the codecs do not go together, or the
            workers do not have the devices.
        """
        train = mode == "train"
        if program.model.run_eagerly:
            inspection = inspect_eagerly(program, sample_of(feed), mode)
        elif train and own_method(program.model, "train"):
            inspection = inspect_own(program, feed.batch_spec)
        else:
            inspection = inspect(program, feed.batch_spec, mode)
        optimizer: AnyOptimizer | None = None
        if train and program.optimizers:
            for one in program.optimizers:
                optimizer_traits.require_supported(one, strategy.cluster.num_ps)
            optimizer = in_force(
                program.optimizers,
                program.owner,
                program.trainable,
                program.calls,
                program.num_calls,
            )
            optimizer = with_own(optimizer, _own(program), len(program.trainable))
        program.unlisted = list(inspection.unlisted)
        program.devices = placing.devices_for(program, strategy.cluster.num_workers)
        plan = Plan(
            strategy.cluster.num_ps,
            strategy.variable_partitioner,
            program,
            optimizer,
            inspection,
            traffic.push,
            traffic.pull,
            traffic.lazy,
        )
        store = ParameterStore(plan, optimizer, piece_bytes, before)
        strategy.placed(plan.placement())
        rate = None if optimizer is None else optimizer_traits.rate_of(optimizer)
        return cls(program, store, Puller(store, optimizer), optimizer, rate)


def _own(program: StatelessModel) -> dict[int, keras.optimizers.Optimizer]:
    """Trainable variable -> the optimizer that its layer brings, where a layer brings one."""
    layers = {i: layer_of(v) for i, v in enumerate(program.trainable)}
    return {i: layer.optimizer for i, layer in layers.items() if layer and layer.optimizer}
