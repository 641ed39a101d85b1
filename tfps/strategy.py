"""`tf.distribute.ParameterServerStrategy` for a tfps cluster, and for Keras 3."""

import contextlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfps import _keras_creation, _tf, _tf_copies, _tf_resources, errors
from tfps.cluster import devices, environment, sockets
from tfps.cluster.made_before import MadeBefore
from tfps.cluster.spec import Cluster
from tfps.coordinator.coordinator import ClusterCoordinator
from tfps.store.placement import Placement
from tfps.store.remote_variable import RemoteVariable

MAX_CHIEF_BYTES = 256 << 20


class ParameterServerStrategy(tf.distribute.ParameterServerStrategy):
    """Connects this process, the chief, to the workers and parameter servers.

    It is a `tf.distribute.ParameterServerStrategy`, and code that is written for that class runs on
    it. It differs in what it does with Keras 3 models, which may be made in its scope, outside of
    it, or before it. Their variables stay on the chief, as one dense copy, from which
    `tfps.Trainer` fills the servers and into which it brings the trained weights back. All other
    variables (`tf.Variable`, tf_keras) go to the servers, as with TensorFlow's class. Very large
    Keras variables that are made in the scope never exist on the chief: their rows are dealt out
    evenly and made on the servers.

    Attributes:
      cluster: the `tfps.Cluster` that the chief is connected to.
      variable_partitioner: the partitioner, or None.
    """

    _cluster_resolver: Any  # TensorFlow's own attribute.

    def __init__(
        self,
        cluster: Cluster | tf.distribute.cluster_resolver.ClusterResolver | None = None,
        variable_partitioner: tf.distribute.experimental.partitioners.Partitioner | None = None,
        startup_timeout: float | None = None,
        max_chief_bytes: int = MAX_CHIEF_BYTES,
        *,
        cluster_resolver: Cluster | tf.distribute.cluster_resolver.ClusterResolver | None = None,
    ):
        """Waits for the servers and connects to them.

        What the process has made before goes on afterwards: models, `tf.Variable`s, lookup tables,
        adapted layers, random generators, traced functions, datasets and iterators. Two things do
        not. A dataset made before whose functions read a `tf.Variable` goes on to read the value
        that the variable had. A `tf.summary` writer has to be made afterwards; a warning says so.

        Args:
          cluster: a `tfps.Cluster`, or a TensorFlow cluster resolver of any kind.
          variable_partitioner: says into how many shards along its first axis a variable is split.
            None keeps variables whole.
          startup_timeout: seconds to wait for all servers together; None for what the environment
            variable TFPS_STARTUP_TIMEOUT says, or 60.
          max_chief_bytes: Keras variables of more bytes that are made in the scope have their rows
            on the servers only.
          cluster_resolver: TensorFlow's name for `cluster`.

        Raises:
          TypeError: both `cluster` and `cluster_resolver` are given, or neither.
          ClusterConfigError: the cluster cannot work, or the variable is no number; the message
            says why.
          StartupTimeout: a server did not answer; names such tasks, with addresses.
          PortInUse: the chief's own port is taken.
        """
        if (cluster is None) == (cluster_resolver is None):
            raise TypeError(
                f"cluster={cluster!r} and cluster_resolver={cluster_resolver!r}; give one of them, "
                "such as tfps.Cluster.from_env()"
            )
        given = cluster or cluster_resolver
        if isinstance(given, Cluster):
            self.cluster = given
            resolver = given.resolver()
        else:
            try:
                self._verify_args_and_config(given)
            except ValueError as e:
                raise errors.ClusterConfigError(f"the cluster resolver does not do: {e}") from e
            self.cluster = Cluster.from_resolver(given)
            resolver = given
        self.variable_partitioner = variable_partitioner
        self._max_chief_bytes = max_chief_bytes
        self._placement = Placement([], self.cluster.num_ps)
        self._require_port()
        environment.configure_channels()
        environment.hide_gpus()
        timeout = environment.startup_timeout() if startup_timeout is None else startup_timeout
        self.cluster.wait(timeout)
        self.cluster.claim(timeout)
        super().__init__(resolver, variable_partitioner=variable_partitioner)
        self.cluster.connected = True
        self._stock_create_variable = self.extended._create_variable
        self.extended._create_variable = self._create_variable
        self._stock_colocate = self.extended.colocate_vars_with
        self.extended.colocate_vars_with = self._colocate_vars_with
        stock_scopes = self.extended._resource_creator_scope
        self.extended._resource_creator_scope = lambda: _tf_resources.scoped_tables(
            self, stock_scopes()
        )
        # Otherwise the first `scope()` would make TensorFlow's coordinator.
        ClusterCoordinator.come_with(self)

    def _require_port(self) -> None:
        """Checks that the chief's port is free, unless this process listens on it already."""
        if "chief" in self.cluster.spec and not self.cluster.connected:
            (address,) = self.cluster.spec["chief"]
            present = _tf_resources.connection()
            if present is None or address != present[-1]:
                sockets.require_free(address, "chief 0")

    def _connect_to_cluster(self, coordinator_name: str) -> None:
        """Connects as TensorFlow does, but keeps the name that this process's devices have.

        Args:
          coordinator_name: the job under which a process connects that has used no device yet.
        """
        job = _tf.local_job() or coordinator_name
        made_before = MadeBefore()
        given = self._cluster_resolver
        self._cluster_resolver = self.cluster.resolver(job)
        try:
            super()._connect_to_cluster(job)
        finally:
            self._cluster_resolver = given
        _tf_copies.connected_anew()
        made_before.carry_over()
        for line in made_before.lost:
            warnings.warn(line, stacklevel=4)

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """Like TensorFlow's; a Keras 3 model that trains is sent to `tfps.Trainer`."""
        if self._is_for_chief():
            return dataset
        return super().experimental_distribute_dataset(dataset, options)

    def run(
        self, fn: Callable, args: tuple = (), kwargs: dict | None = None, options: Any = None
    ) -> Any:
        """Like TensorFlow's; a Keras 3 model's own `evaluate` and `predict` run on the chief."""
        if self._is_for_chief():
            return fn(*args, **(kwargs or {}))
        return super().run(fn, args, kwargs, options)

    def _is_for_chief(self) -> bool:
        """Whether a Keras 3 model calls that was made in the scope and evaluates or predicts.

        Such a model may share layers with one that is trained, as an encoder does.

        Raises:
          ConfigError: the model would train.
        """
        method = _tf.keras3_method()
        if method in ("fit", "train_on_batch"):
            raise errors.ConfigError(
                f"{method} of a Keras 3 model cannot use parameter servers; make trainer = "
                "tfps.Trainer(model, strategy) and call the trainer's fit"
            )
        return method is not None

    def _create_variable(self, next_creator, **kwargs):
        if _tf.created_by_tfps():
            # It is made where the device in scope says, whoever called from within the scope.
            return next_creator(**{**kwargs, "distribute_strategy": None})
        if not _tf.created_by_keras3():
            return self._stock_create_variable(next_creator, **kwargs)
        if initializer := _keras_creation.initializer_of(kwargs.get("initial_value")):
            owner, initializer = initializer
            stays = getattr(initializer, "stays_on_chief", False)
            if (
                not stays
                and math.prod(owner.shape) * tf.as_dtype(owner.dtype).size > self._max_chief_bytes
            ):
                return RemoteVariable(
                    initializer, owner.shape, owner.dtype, self.cluster.num_ps, owner.path
                )
        # Without the strategy's mark, it is an ordinary variable on the device in scope, by default
        # the chief's.
        kwargs["distribute_strategy"] = None
        return next_creator(**kwargs)

    def _colocate_vars_with(self, variable: Any) -> contextlib.AbstractContextManager:
        """Like TensorFlow's; what Keras 3 makes beside a variable of the chief is there by itself.

        An optimizer builds its slots so when a compiled model is loaded in the scope.
        """
        if getattr(variable, "_distribute_strategy", None) is None:
            return contextlib.nullcontext()
        return self._stock_colocate(variable)

    def placement(self) -> Placement:
        """Returns which part of which variable is on which ps, for the model trained last.

        `str()` of the placement is a table. It is empty until a `Trainer` has filled the servers.
        """
        return self._placement

    def device_table(self) -> str:
        """Returns a table of the cluster's tasks: address, CPU and GPU devices."""
        return devices.table(self.cluster.spec)

    def placed(self, placement: Placement) -> None:
        """Notes where a trainer has put a model's variables."""
        self._placement = placement
