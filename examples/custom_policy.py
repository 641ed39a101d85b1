"""Bounds how far a worker may be ahead, tightly at first, by a policy of one's own.

Run it with `python examples/custom_policy.py`.
"""

import keras
import tensorflow as tf

import tfps


class Loosening(tfps.consistency.ConsistencyPolicy):
    """A worker may be `k` steps ahead of the slowest; `k` grows by 1 with every `steps` steps."""

    def __init__(self, steps: int):
        self.steps = steps
        self.leads: dict[int, list[int]] = {}  # k -> how far ahead workers were

    def schedule(self) -> tfps.consistency.Schedule:
        return LooseningClocks(self)  # A new one for each epoch.


class LooseningClocks(tfps.consistency.Clocks):
    """Asked by the chief who may start. `Clocks` counts each worker's steps up to a `bound`."""

    def __init__(self, policy: Loosening):
        super().__init__(bound=0)
        self.policy, self.total = policy, 0

    def allowance(self, worker: int) -> float:
        self.bound = self.total // self.policy.steps
        allowed = super().allowance(worker)
        if allowed:  # Otherwise the worker is asked again when another worker has finished.
            self.policy.leads.setdefault(self.bound, []).append(self.bound + 1 - allowed)
        return min(allowed, 1)

    def finished(self, worker: int, steps: int, weight: float) -> bool:
        self.total += steps
        return super().finished(worker, steps, weight)


def dataset_fn(context: tfps.Context) -> tf.data.Dataset:
    dataset = tf.data.Dataset.from_tensors((tf.ones([8, 4]), tf.ones([8, 1]))).repeat()
    if context.worker_index == 1:  # A slow worker: it draws a million numbers for each batch.
        dataset = dataset.map(lambda x, y: (x + 0 * tf.reduce_sum(tf.random.normal([10**6])), y))
    return dataset


if __name__ == "__main__":
    strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=2, ps=1))
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), loss="mse")
    policy = Loosening(steps=40)
    tfps.Trainer(model, strategy, policy).fit(dataset_fn, steps_per_epoch=200, verbose=0)
    for k, leads in policy.leads.items():
        print(f"allowed to be {k} ahead: {max(leads)} at most, in {len(leads)} starts")
