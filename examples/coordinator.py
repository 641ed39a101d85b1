"""Runs functions of one's own on the workers, with the API of `tf.distribute`.

Run it with `python examples/coordinator.py`.
"""

import tensorflow as tf

import tfps


def main() -> None:
    strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=2, ps=1))
    coordinator = tfps.ClusterCoordinator(strategy)
    with strategy.scope():
        total = tf.Variable(0.0)  # On the parameter server.

    @tf.function
    def add_and_return(iterator):
        """Runs on a worker: reads its next number and adds it on the server."""
        number = next(iterator)
        total.assign_add(number)
        return number

    # Each worker counts 1, 2, 3 … by itself.
    def dataset():
        return tf.data.Dataset.range(1, 1000).map(lambda i: tf.cast(i, tf.float32))

    iterator = iter(coordinator.create_per_worker_dataset(dataset))
    values = [coordinator.schedule(add_and_return, args=(iterator,)) for _ in range(20)]
    coordinator.join()  # Waits for all 20.
    numbers = sorted(float(n) for n in coordinator.fetch(values))
    print(f"the workers read {numbers}")
    print(f"their sum is {sum(numbers):.0f}; on the server: {total.numpy():.0f}")

    @tf.function
    def divide(a, b):
        return a // b

    coordinator.schedule(divide, args=(tf.constant(1), tf.constant(0)))
    try:
        coordinator.join()
    except tfps.WorkerError as e:  # Also a tf.errors.InvalidArgumentError, as with TensorFlow.
        print(f"{type(e).__name__}: {e}")
    # After an error has been raised once, the coordinator can be used again.
    print(f"7 // 2 = {coordinator.schedule(divide, args=(tf.constant(7), tf.constant(2))).fetch()}")


if __name__ == "__main__":
    main()
