"""What a small step costs: processor time of the chief, and batches per second beside plain Keras.

First, a tiny network is trained in one process, with an embedded cluster of one worker and one ps,
in turns with plain Keras on the same batches. Then it is trained with real server processes, and
the processor time of the chief's process is measured, of all of its threads, beside that of an
empty function of `tfps.ClusterCoordinator`. Each number of workers has a process of its own.

  python -m benchmarks.chief
"""

import functools
import gc
import itertools
import json
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import models  # noqa: F401  Imports TensorFlow without its notes.
import tfps
from benchmarks import measure

FLAGS = flags.FLAGS
flags.DEFINE_list("workers", ["1", "2", "4", "8", "16"], "Numbers of workers, server processes.")
flags.DEFINE_integer("rounds", 5, "Turns of each system.", lower_bound=1)
flags.DEFINE_integer("steps", 400, "Steps in a turn.", lower_bound=10)
flags.DEFINE_bool("embedded", True, "Whether to compare with plain Keras in one process, too.")
flags.DEFINE_string("json", "chief.json", "File for the results.")
flags.DEFINE_integer("measure", None, "Only the chief's time with so many workers, as JSON.")

BATCH, INPUTS = 32, 8
EMPTY = "empty function"
# (least batches/s, steps a call) in one process, and the chief's time as a multiple of `EMPTY`'s.
BARS = {1: 150, 10: 250}
BAR = 2.0


def mlp(steps_per_execution: int) -> keras.Model:
    model = keras.Sequential(
        [keras.Input([INPUTS]), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    return model


class Hook(keras.callbacks.Callback):
    """A batch hook that looks at the logs."""

    def on_train_batch_end(self, batch, logs=None):
        self.loss = logs["loss"]


@functools.cache
def arrays(steps: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(steps * BATCH, INPUTS)).astype(np.float32)
    return x, x[:, :1]


def dataset(_) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors((tf.ones([BATCH, INPUTS]), tf.ones([BATCH, 1]))).repeat()


def fits(fit: Callable, callback: type | None = None) -> Callable[[int], object]:
    """A function that trains for so many steps on arrays."""

    def run(steps: int) -> object:
        x, y = arrays(steps)
        callbacks = [callback()] if callback else []
        return fit(x, y, batch_size=BATCH, verbose=0, callbacks=callbacks)

    return run


def rate(run: Callable[[int], object]) -> float:
    """Batches per second in one turn; what was there before may still be busy in its first part."""
    gc.collect()
    run(FLAGS.steps // 4)
    return measure.timed(lambda: run(FLAGS.steps), FLAGS.steps)


def beside_keras() -> list[dict]:
    strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(1, 1))
    rows = []
    for k in BARS:
        runs = {}
        for name, hook in (("", None), (", batch hook", Hook)):
            trainer, model = tfps.Trainer(mlp(k), strategy), mlp(k)
            runs[f"tfps{name}"] = functools.partial(rate, fits(trainer.fit, hook))
            runs[f"Keras{name}"] = functools.partial(rate, fits(model.fit, hook))
        for run in runs.values():
            run()  # Traces.
        case = f"one process, {k} step(s) a call"
        rows.append(measure.row(case, "batches/s", measure.alternate(runs, FLAGS.rounds), "Keras"))
        print(measure.table(rows[-1:]).split("\n", 2)[2], flush=True)
    return rows


def scheduled(coordinator: tfps.ClusterCoordinator, function: Callable, calls: int) -> None:
    for _ in range(calls):
        coordinator.schedule(function)
    coordinator.join()


def microseconds(run: Callable[[int], object]) -> float:
    """Processor time of this process for a step, in µs, without what a `fit` costs by itself."""
    gc.collect()
    time.sleep(0.5)
    few, many = FLAGS.steps // 4, FLAGS.steps
    times = [time.process_time()]
    for steps in (few, many):
        run(steps)
        times.append(time.process_time())
    of_few, of_many = (after - before for before, after in itertools.pairwise(times))
    return (of_many - of_few) / (many - few) * 1e6


def of_the_chief(workers: int) -> dict[str, list[float]]:
    """Measures in this process, which is the chief's."""
    with tfps.LocalCluster(workers, 1, processes=True) as cluster:
        # So many processes that import TensorFlow at once take their time.
        strategy = tfps.ParameterServerStrategy(cluster, startup_timeout=600)
        coordinator = tfps.ClusterCoordinator(strategy)

        @tf.function
        def empty():
            pass

        def on_workers(trainer, steps):
            return trainer.fit(dataset, steps_per_epoch=steps, verbose=0)

        runs = {EMPTY: functools.partial(scheduled, coordinator, empty)}
        for k in (1, 8):
            trainer = tfps.Trainer(mlp(k), strategy)
            runs[f"dataset_fn, {k} step(s) a call"] = functools.partial(on_workers, trainer)
        runs["arrays, 1 step a call"] = fits(tfps.Trainer(mlp(1), strategy).fit)
        runs["arrays, batch hook"] = fits(tfps.Trainer(mlp(1), strategy).fit, Hook)
        measured = {name: functools.partial(microseconds, run) for name, run in runs.items()}
        for run in measured.values():
            run()  # Traces.
        return measure.alternate(measured, FLAGS.rounds)


def in_a_process(workers: int) -> dict:
    arguments = [f"--measure={workers}", f"--rounds={FLAGS.rounds}", f"--steps={FLAGS.steps}"]
    found = measure.in_a_process("benchmarks.chief", *arguments)
    row = measure.row(f"chief, {workers} worker(s)", "µs", found, EMPTY)
    print(measure.table([row]).split("\n", 2)[2], flush=True)
    return row


def verdicts(rows: list[dict]) -> list[str]:
    """Whether each row meets its bar."""
    lines = []
    for row in rows:
        if EMPTY in row["ratio"]:
            checks = {n: (r, f"at most {BAR}", r <= BAR) for n, r in row["ratio"].items()}
            del checks[EMPTY]
        else:
            bar = BARS[int(row["case"].split()[2])]
            found = row["median"]["tfps"]
            checks = {"tfps": (found, f"at least {bar} batches/s", found >= bar)}
        for name, (value, bar, met) in checks.items():
            lines.append(
                f"{row['case']}, {name}: {value:.2f}, bar {bar}: {'met' if met else 'MISSED'}"
            )
    return lines


def main(argv: list[str]) -> int:
    del argv
    tf.get_logger().setLevel("ERROR")
    if FLAGS.measure:
        print(json.dumps(of_the_chief(FLAGS.measure)))
        return 0
    rows = beside_keras() if FLAGS.embedded else []
    rows += [in_a_process(int(workers)) for workers in FLAGS.workers]
    print("\n" + measure.table(rows))
    print("\n".join(verdicts(rows)))
    measure.write(FLAGS.json, rows)
    return 0


if __name__ == "__main__":
    app.run(main)
