"""Trains a linear regression on a table, by default on house prices in California.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.linear
  python -m models.linear --data=houses.csv --target=price --save=prices.keras
  python -m models.linear --save=prices.keras --predict=new.csv --out=priced.csv
"""

import time

import keras
import numpy as np
from absl import flags

import tfps
from models import feeding, inference, packages, program, tables, task
from models.linear import model as linear
from models.progress import Progress

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(packages)
flags.adopt_module_key_flags(inference)

DATA = (
    "A CSV file of numbers, whose first line names the columns. Default: California housing, which "
    "`make data-linear` downloads."
)
DEFAULTS = {
    "batch_size": 128,
    "epochs": 20,
    "learning_rate": 0.02,
    "steps_per_execution": 32,
    "save": "runs/linear/model.keras",
}

flags.DEFINE_string("target", None, "The column to predict. Default: the last one.")


def main(argv: list[str]) -> int:
    """Trains, or predicts; returns the exit code."""
    return program.run(argv, train, None if FLAGS.predict is None else predict)


def train(connect: task.Connect) -> None:
    """Runs the chief: reads the table, trains, and compares with least squares."""
    program.check_flags()
    started = time.perf_counter()
    names, target, x, y = _load()
    training, held = tables.held_out(len(y))
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    batch = FLAGS.batch_size * way.batches_per_step
    data = feeding.shuffled(x[training], y[training, None], batch, FLAGS.seed)
    with way.scope():
        updates = way.updates(FLAGS.epochs * (len(training) // batch))
        rate = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, max(1, updates))
        model = linear.compiled(x[training], y[training], rate, FLAGS.steps_per_execution)
    board = program.log_dir()
    say(
        f"{model.count_params():,} parameters on {way.describe()}, {len(training):,} rows to train "
        f"on, {len(held):,} held out",
        flush=True,
    )
    trainer = way.trainer(model)
    shown = Progress(batch, "rows", lambda logs: f"squared error {logs['val_squared_error']:.5g}")
    program.fit(
        way,
        trainer,
        data,
        shown,
        board,
        epochs=FLAGS.epochs,
        validation_data=feeding.in_order(x[held], y[held, None], 1024),
    )
    path = way.path(FLAGS.save)
    model.save(path)
    if not way.chief:
        return
    facts = {"columns": names, "target": target}
    program.write_facts(path, facts)
    ours = linear.r_squared(y[held], program.outputs(model, x[held])[:, 0])
    exact = linear.r_squared(y[held], linear.least_squares(x[training], y[training], x[held]))
    seconds = time.perf_counter() - started
    held_out = {"r_squared": ours, "least_squares": exact, "seconds": seconds}
    program.write_facts(path, {**facts, "held_out": held_out})
    print(f"held out: R² {ours:.4f}, least squares {exact:.4f}, after {seconds:.0f} s")
    program.finish(way, trainer, board)


def predict() -> None:
    """Writes the rows of --predict as they are, with a prediction for each."""
    model, facts = program.load(FLAGS.save)
    table = tables.read_csv(FLAGS.predict, "predict")
    x = np.stack([tables.numbers(table, name, "predict") for name in facts["columns"]], 1)
    found = program.outputs(model, x)[:, 0]
    inference.write_csv([*table, f"predicted {facts['target']}"], [*table.values(), found])


def _load() -> tuple[list[str], str, np.ndarray, np.ndarray]:
    """(names of the inputs, name of the target, float32 [rows, inputs], float32 [rows])."""
    if FLAGS.data is None:
        table = tables.read_widedeep("california_housing", "linear")
    else:
        table = tables.read_csv(FLAGS.data)
    target = FLAGS.target or list(table)[-1]
    y = tables.numbers(table, target)
    names = [name for name in table if name != target]
    if not names:
        raise tfps.DataError(f"--data has the column {target} only; give columns to predict it by")
    return names, target, np.stack([tables.numbers(table, name) for name in names], 1), y


if __name__ == "__main__":
    program.set_defaults(DATA, **DEFAULTS)
    task.main(main)
