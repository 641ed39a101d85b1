"""The job whose tasks are killed by `benchmarks.recovery`: it notes when steps end, and who lives.

Every task of the job runs this program. The chief appends lines to the file --events, each with
`time.monotonic()`, which is one clock for all processes of a machine:

  12.345 steps 71             so many steps are done, of this life of the chief
  12.345 lost worker 1        the chief has noticed
  12.345 back worker 1
  12.345 scheduled 500        at the end: steps that were asked for, and updates on the servers
  12.345 updates 500
"""

import itertools
import json
import os
import threading
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfps
from models import task

FLAGS = flags.FLAGS
flags.DEFINE_enum("system", "tfps", ["tfps", "stock"], "Whose coordinator drives the workers.")
flags.DEFINE_string("events", None, "File to which events are appended.", required=True)
flags.DEFINE_string("enough", None, "The job ends when this file is there.", required=True)

STEPS = 200  # steps in an epoch
BATCH, WIDTH = 32, 256
_LOOK = 0.01  # s between two looks at who lives


def note(what: str) -> None:
    """Appends an event to the file."""
    with open(FLAGS.events, "a") as f:
        f.write(f"{time.monotonic():.4f} {what}\n")


class Notes(keras.callbacks.Callback):
    """Notes when steps end, and who is lost and back; ends training when it is enough."""

    def __init__(self, trainer: tfps.Trainer):
        super().__init__()
        self._trainer, self._steps = trainer, 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        calls = self._trainer._session.calls
        before = set(range(calls.num_workers))
        while True:
            living = set(calls.living)
            for worker in before - living:
                note(f"lost worker {worker}")
            for worker in living - before:
                note(f"back worker {worker}")
            before = living
            time.sleep(_LOOK)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Notes a step."""
        self._steps += 1
        note(f"steps {self._steps}")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Looks whether it is enough."""
        self.model.stop_training = os.path.exists(FLAGS.enough)


def train(connect: task.Connect) -> None:
    """The chief, with tfps."""
    way = connect()
    with way.scope():
        layers = [keras.layers.Dense(WIDTH, "relu") for _ in range(3)]
        model = keras.Sequential([keras.Input([WIDTH]), *layers, keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(STEPS * BATCH, WIDTH)).astype(np.float32)
    trainer = way.trainer(model)
    notes = Notes(trainer)
    history = trainer.fit(x, x[:, :1], batch_size=BATCH, epochs=10**6, verbose=0, callbacks=[notes])
    note(f"scheduled {STEPS * len(history.epoch)}")
    note(f"updates {int(model.optimizer.iterations)}")


def stock() -> None:
    """Every task, with TensorFlow's coordinator; its chief has no state that could be resumed."""
    config = json.loads(os.environ["TF_CONFIG"])
    spec, own = tf.train.ClusterSpec(config["cluster"]), config["task"]
    if own["type"] != "chief":
        tf.distribute.Server(spec, job_name=own["type"], task_index=own["index"]).join()
        return
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        spec, task_type="chief", task_id=0, rpc_layer="grpc"
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    x = tf.random.stateless_normal([BATCH, WIDTH], [0, 1])
    with strategy.scope():
        sizes = [WIDTH, WIDTH, WIDTH, WIDTH, 1]
        shapes = itertools.pairwise(sizes)
        kernels = [tf.Variable(tf.random.normal(s, stddev=0.06)) for s in shapes]
        done = tf.Variable(0, dtype=tf.int64)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            y = x
            for kernel in kernels[:-1]:
                y = tf.nn.relu(y @ kernel)
            loss = tf.reduce_mean(tf.square(y @ kernels[-1] - x[:, :1]))
        for kernel, gradient in zip(kernels, tape.gradient(loss, kernels), strict=True):
            kernel.assign_sub(1e-3 * gradient)
        done.assign_add(1)

    def watch() -> None:
        before = -1
        while True:
            if (now := int(done.numpy())) != before:
                note(f"steps {now}")
                before = now
            time.sleep(_LOOK)

    coordinator.schedule(step)
    coordinator.join()
    threading.Thread(target=watch, daemon=True).start()
    scheduled = 1
    while not os.path.exists(FLAGS.enough):
        for _ in range(50):
            coordinator.schedule(step)
        scheduled += 50
        while scheduled - int(done.numpy()) > 100:
            time.sleep(_LOOK)
    coordinator.join()
    note(f"scheduled {scheduled}")
    note(f"updates {int(done.numpy())}")
    os._exit(0)  # TensorFlow's servers do not end with their chief.


def main(argv: list[str]) -> int:
    """Runs this process's task."""
    del argv
    if FLAGS.system == "tfps":
        return task.run(train)
    stock()
    return 0


if __name__ == "__main__":
    task.main(main)
