"""`tf.distribute.ParameterServerStrategy` for a tfps cluster, and for Keras 3."""

import math

import tensorflow as tf

from tfps import _keras, _tf
from tfps.cluster import environment, sockets
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

    def __init__(
        self,
        cluster: Cluster | tf.distribute.cluster_resolver.ClusterResolver,
        variable_partitioner: tf.distribute.experimental.partitioners.Partitioner | None = None,
        startup_timeout: float = 60.0,
        max_chief_bytes: int = MAX_CHIEF_BYTES,
    ):
        """Waits for the servers and connects to them.

        Args:
          cluster: a `tfps.Cluster`, or a TensorFlow cluster resolver.
          variable_partitioner: says into how many shards along its first axis a variable is split.
            None keeps variables whole.
          startup_timeout: seconds to wait for all servers together.
          max_chief_bytes: Keras variables of more bytes that are made in the scope have their rows
            on the servers only.

        Raises:
          StartupTimeout: a server did not answer; names such tasks, with addresses.
          PortInUse: the chief's own port is taken.
        """
        if not isinstance(cluster, Cluster):
            cluster = Cluster.from_resolver(cluster)
        self.cluster = cluster
        self.variable_partitioner = variable_partitioner
        self._max_chief_bytes = max_chief_bytes
        self._placement = Placement([], cluster.num_ps)
        if "chief" in cluster.spec and not cluster.connected:
            sockets.require_free(cluster.spec["chief"][0], "chief 0")
        environment.configure_channels()
        cluster.wait(startup_timeout)
        cluster.connected = True
        with _keras.variables_survive():
            super().__init__(cluster.resolver(), variable_partitioner=variable_partitioner)
        self._stock_create_variable = self.extended._create_variable
        self.extended._create_variable = self._create_variable
        # Otherwise the first `scope()` would make TensorFlow's coordinator.
        ClusterCoordinator(self)

    def _create_variable(self, next_creator, **kwargs):
        if not _tf.created_by_keras3():
            return self._stock_create_variable(next_creator, **kwargs)
        if initializer := _keras.initializer_of(kwargs.get("initial_value")):
            owner, initializer = initializer
            if math.prod(owner.shape) * tf.as_dtype(owner.dtype).size > self._max_chief_bytes:
                return RemoteVariable(
                    initializer, owner.shape, owner.dtype, self.cluster.num_ps, owner.path
                )
        # Without the strategy's mark, it is an ordinary variable on the device in scope, by default
        # the chief's.
        kwargs["distribute_strategy"] = None
        return next_creator(**kwargs)

    def placement(self) -> Placement:
        """Returns which part of which variable is on which ps, for the model trained last.

        `str()` of the placement is a table. It is empty until a `Trainer` has filled the servers.
        """
        return self._placement

    def placed(self, placement: Placement) -> None:
        """Notes where a trainer has put a model's variables."""
        self._placement = placement
