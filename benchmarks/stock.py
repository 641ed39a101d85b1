"""tfps beside TensorFlow's own path: tf_keras `Model.fit` on `ParameterServerStrategy`.

Both train on one embedded cluster of 2 workers and 2 ps, in turns, with the
same number of steps in a call. Needs the extra `compare`:

  pip install -c constraints.txt -e '.[compare]' && python -m benchmarks.stock
"""

import gc
import sys
import time

import keras
import tensorflow as tf
from absl import app, flags

import models  # noqa: F401  Imports TensorFlow without its notes.
import tfps
from benchmarks import measure
from models.gpt import model as gpt

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 3, "Turns of each system.", lower_bound=1)
flags.DEFINE_float("scale", 1.0, "Factor on the steps of a turn.", lower_bound=0.01)
flags.DEFINE_string("json", "stock.json", "File for the results.")

# The defaults of `python -m models.gpt`.
VOCABULARY, LAYERS, WIDTH, HEADS, CONTEXT, BATCH = 256, 4, 128, 4, 64, 16
VARIABLES, FLOATS = 100, 16


def token_dataset(_) -> tf.data.Dataset:
    """A dataset of random tokens; speed does not depend on what the model learns."""
    tokens = tf.random.uniform([BATCH, CONTEXT + 1], 0, VOCABULARY, tf.int32)
    return tf.data.Dataset.from_tensors((tokens[:, :-1], tokens[:, 1:])).repeat()


def vector_dataset(_) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors((tf.ones([1, FLOATS]), tf.ones([1, 1]))).repeat()


def stock_gpt():
    """The network of `models.gpt` in tf_keras."""
    from benchmarks import tf_keras_gpt

    return tf_keras_gpt.build(VOCABULARY, LAYERS, WIDTH, HEADS, CONTEXT)


def many_variables(base, total):
    """A subclass of `base` with many small variables and hardly any arithmetic."""

    class Many(base):
        def build(self, shape):
            self.vectors = [
                self.add_weight(shape=(FLOATS,), name=f"v{i}") for i in range(VARIABLES)
            ]

        def call(self, x):
            return total([total(v * x) for v in self.vectors])[None]

    return Many()


def compiled(model, optimizer, loss, steps_per_execution, **arguments):
    model.compile(
        optimizer,
        loss,
        steps_per_execution=steps_per_execution,
        **arguments,
    )
    return model


def turn(fit, steps, per_step) -> float:
    """Runs one turn; returns units per second.

    What the system before it left behind (TensorFlow's coordinator is busy for
    seconds after its `fit` returned) falls into a quarter that is not measured.
    """
    gc.collect()
    time.sleep(1)
    fit(steps // 4)
    return measure.timed(lambda: fit(steps), steps * per_step)


def compare(case, unit, make_tfps, make_stock, dataset, steps, per_step, cluster):
    """One row of the table: `tfps` with Keras's default compilation, `tfps` with XLA, and stock."""
    fits = {}
    strategy = tfps.ParameterServerStrategy(cluster)
    for name, jit in (("tfps", "auto"), ("tfps, XLA", True)):
        trainer = tfps.Trainer(make_tfps(jit), strategy)
        fits[name] = lambda n, t=trainer: t.fit(dataset, steps_per_epoch=n, verbose=0)
    stock = tf.distribute.ParameterServerStrategy(cluster.resolver())
    import tf_keras

    with stock.scope():
        model = make_stock(tf_keras)
    creator = tf_keras.utils.experimental.DatasetCreator(dataset)
    fits["stock"] = lambda n: model.fit(creator, steps_per_epoch=n, verbose=0)
    runs = {name: lambda f=fit: turn(f, steps, per_step) for name, fit in fits.items()}
    for run in runs.values():
        run()  # Traces and compiles.
    result = measure.row(case, unit, measure.alternate(runs, FLAGS.rounds), "stock")
    print(measure.table([result]).split("\n", 2)[2], flush=True)
    return result


def main(argv: list[str]) -> int:
    del argv
    try:
        import tf_keras  # noqa: F401
    except ImportError:
        print("error: tf_keras is missing; pip install -e '.[compare]'", file=sys.stderr)
        return 1
    cluster = tfps.LocalCluster(2, 2)
    rows = []

    def crossentropy(library):
        return library.losses.SparseCategoricalCrossentropy(from_logits=True)

    rows.append(
        compare(
            "GPT, 8 steps a call",
            "tokens/s",
            lambda jit: compiled(
                gpt.build(VOCABULARY, LAYERS, WIDTH, HEADS, CONTEXT, 0.0),
                keras.optimizers.AdamW(1e-3),
                crossentropy(keras),
                8,
                jit_compile=jit,
            ),
            lambda lib: compiled(stock_gpt(), lib.optimizers.AdamW(1e-3), crossentropy(lib), 8),
            token_dataset,
            int(96 * FLAGS.scale) // 8 * 8,
            BATCH * CONTEXT,
            cluster,
        )
    )
    for k, steps in ((1, 400), (8, 800)):
        rows.append(
            compare(
                f"{VARIABLES} variables of {FLOATS}, {k} step(s) a call",
                "steps/s",
                lambda jit, k=k: compiled(
                    many_variables(keras.Model, keras.ops.sum),
                    keras.optimizers.SGD(1e-3, momentum=0.9),
                    lambda y, p: p,
                    k,
                    jit_compile=jit,
                ),
                lambda lib, k=k: compiled(
                    many_variables(lib.Model, tf.reduce_sum),
                    lib.optimizers.SGD(1e-3, momentum=0.9),
                    lambda y, p: p,
                    k,
                ),
                vector_dataset,
                int(steps * FLAGS.scale) // 8 * 8,
                1,
                cluster,
            )
        )
    print("\n" + measure.table(rows))
    measure.write(FLAGS.json, rows)
    return 0


if __name__ == "__main__":
    app.run(main)
