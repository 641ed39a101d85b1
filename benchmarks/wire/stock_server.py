"""A worker or ps of TensorFlow's own strategy: its server, until the main process is done."""

import tensorflow as tf

from benchmarks.wire import lines

# Inter-op threads. A server blocks one thread for each function that waits in it. By default a
# server has as many threads as cores, and two workers and two ps on two cores deadlock.
INTER_OP_THREADS = 16


def main() -> None:
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    server = tf.distribute.Server(
        resolver.cluster_spec(),
        job_name=resolver.task_type,
        task_index=resolver.task_id,
        protocol="grpc",
        config=tf.compat.v1.ConfigProto(inter_op_parallelism_threads=INTER_OP_THREADS),
    )
    lines.serve(lambda message: {"error": f"{server.target} takes no orders: {message}"})


if __name__ == "__main__":
    main()
