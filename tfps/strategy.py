"""`tf.distribute.ParameterServerStrategy` for a tfps cluster, and for Keras 3."""

import tensorflow as tf

from tfps import _keras, _tf, net
from tfps.cluster import Cluster


class ParameterServerStrategy(tf.distribute.ParameterServerStrategy):
    """Connects this process, the chief, to the workers and parameter servers.

    It is a `tf.distribute.ParameterServerStrategy`: code written for that runs
    on this one. What differs: Keras 3 models may be made in its scope, outside
    of it, or before it. Their variables stay on the chief, one dense copy, from
    which `tfps.Trainer` fills the servers and into which it brings the trained
    weights back; variables of everything else (`tf.Variable`, tf_keras) go to
    the servers as before.

    Attributes:
      cluster: the `tfps.Cluster` it is connected to.
      variable_partitioner: the partitioner, or None.
    """

    def __init__(self, cluster, variable_partitioner=None, startup_timeout: float = 60.0):
        """Waits for the servers and connects to them.

        Args:
          cluster: a `tfps.Cluster`, or a TensorFlow cluster resolver.
          variable_partitioner: a `tf.distribute.experimental.partitioners.
            Partitioner`: into how many shards along its first axis a variable
            is split. None keeps variables whole.
          startup_timeout: seconds to wait for all servers together.

        Raises:
          StartupTimeout: names the tasks that did not answer, with addresses.
          PortInUse: the chief's own port is taken.
        """
        if not isinstance(cluster, Cluster):
            cluster = Cluster.from_resolver(cluster)
        self.cluster = cluster
        self.variable_partitioner = variable_partitioner
        if "chief" in cluster.spec and not cluster.connected:
            net.require_free(cluster.spec["chief"][0], "chief 0")
        cluster.wait(startup_timeout)
        cluster.connected = True
        with _keras.variables_survive():
            super().__init__(cluster.resolver(), variable_partitioner=variable_partitioner)
        self._stock_create_variable = self.extended._create_variable
        self.extended._create_variable = self._create_variable

    def _create_variable(self, next_creator, **kwargs):
        if not _tf.created_by_keras3():
            return self._stock_create_variable(next_creator, **kwargs)
        # Without the strategy's mark it is an ordinary variable, on the device
        # of the caller's choice or else here.
        kwargs["distribute_strategy"] = None
        return next_creator(**kwargs)


def worker_device(index: int) -> str:
    """The device of a worker's steps: TensorFlow picks its GPU where it has one."""
    return f"/job:worker/replica:0/task:{index}"


def ps_device(index: int) -> str:
    """The CPU of a parameter server."""
    return f"/job:ps/replica:0/task:{index}/device:CPU:0"
