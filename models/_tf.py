"""Private names of TensorFlow that the reference programs need, as of TensorFlow 2.21.0."""

import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.distribute import multi_worker_util
from tensorflow.python.eager import context


def limit_startup(spec: tf.train.ClusterSpec, seconds: float) -> None:
    """Limits how long a MultiWorkerMirroredStrategy that is made later waits for its workers.

    By default the coordination service waits for an hour, in a call that stops all of Python's
    threads. The strategy configures the service itself unless that was done before.

    Args:
      spec: the tasks of the jobs `chief` and `worker`.
      seconds: the longest time. Then the strategy raises a `tf.errors.OpError`.
    """
    jobs = [
        coordination_config_pb2.CoordinatedJob(name=job, num_tasks=spec.num_tasks(job))
        for job in spec.jobs
    ]
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=multi_worker_util.coordination_leader(spec),
        cluster_register_timeout_in_ms=int(1000 * seconds),
        coordinated_jobs=jobs,
    )
    # Otherwise a worker registers alone, and then waits for the others without this limit.
    context.context().coordination_service.cluster_register_with_barrier = True
