"""Trains a recommender, by default on which films people liked.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.recommender
  python -m models.recommender --data=clicks.csv --label=click --liked_from=1 --save=clicks.keras
  python -m models.recommender --save=clicks.keras --predict=pairs.csv --out=scores.csv
"""

import dataclasses
import time

import keras
import numpy as np
from absl import flags

from models import feeding, inference, packages, program, tables, task
from models.progress import Progress
from models.recommender import interactions, model as network

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(packages)
flags.adopt_module_key_flags(inference)

DATA = (
    "A CSV file with the columns user_id, item_id and rating, and others that begin with user_ or "
    "item_. Default: MovieLens-100k, which `make data-recommender` downloads."
)
DEFAULTS = {
    "batch_size": 256,
    "epochs": 8,
    "learning_rate": 0.15,
    "steps_per_execution": 16,
    "save": "runs/recommender/model.keras",
}

flags.DEFINE_enum("model", "two_tower", list(network.KINDS), "What is trained.")
flags.DEFINE_integer("embedding_width", 16, "Elements of an embedding.", lower_bound=1)
flags.DEFINE_string("label", "rating", "The column of ratings, or of other numbers.")
flags.DEFINE_float("liked_from", 4.0, "Smallest rating of what counts as liked.")


def main(argv: list[str]) -> int:
    """Trains, or predicts; returns the exit code."""
    return program.run(argv, train, None if FLAGS.predict is None else predict)


def train(connect: task.Connect) -> None:
    """Runs the chief: reads the ratings, trains, and tells how well what is liked is found."""
    program.check_flags()
    started = time.perf_counter()
    table = interactions.movielens() if FLAGS.data is None else tables.read_csv(FLAGS.data)
    columns = interactions.Columns.of(table)
    x = columns.inputs(table)
    y = interactions.liked(table, FLAGS.label, FLAGS.liked_from)
    training, held = tables.held_out(len(y))
    before, after = ({n: a[rows] for n, a in x.items()} for rows in (training, held))
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    batch = FLAGS.batch_size * way.batches_per_step
    data = feeding.shuffled(before, y[training, None], batch, FLAGS.seed)
    with way.scope():
        model = _compiled_model(columns, before)
    board = program.log_dir()
    say(
        f"{FLAGS.model} with {len(columns.ids)} tables on {way.describe()}, {len(training):,} "
        f"ratings to train on, {len(held):,} held out",
        flush=True,
    )
    trainer = way.trainer(model)
    shown = Progress(batch, "ratings", lambda logs: f"AUC {logs['val_auc']:.4f}")
    program.fit(
        way,
        trainer,
        data,
        shown,
        board,
        epochs=FLAGS.epochs,
        validation_data=feeding.in_order(after, y[held, None], 1024),
    )
    path = way.path(FLAGS.save)
    model.save(path)
    if not way.chief:
        return
    facts = {"columns": dataclasses.asdict(columns)}
    program.write_facts(path, facts)
    found = network.auc(y[held], program.outputs(model, after)[:, 0])
    seconds = time.perf_counter() - started
    held_out = {"auc": found, "seconds": seconds}
    program.write_facts(path, {**facts, "held_out": held_out})
    print(f"held out: AUC {found:.4f}, after {seconds:.0f} s")
    program.finish(way, trainer, board)


def predict() -> None:
    """Writes user, item and the probability that the user likes it, for each row of --predict."""
    model, facts = program.load(FLAGS.save)
    columns = interactions.Columns(**facts["columns"])
    table = tables.read_csv(FLAGS.predict, "predict")
    logits = program.outputs(model, columns.inputs(table, "predict"))[:, 0]
    chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
    ids = [tables.texts(table, name) for name in ("user_id", "item_id")]
    inference.write_csv(["user_id", "item_id", "liked"], [*ids, chances])


def _compiled_model(columns: interactions.Columns, examples: dict[str, np.ndarray]) -> keras.Model:
    model = network.build(FLAGS.model, columns, examples, FLAGS.embedding_width, FLAGS.seed)
    # Adagrad leaves a row that no example of a batch names as it is, so lazy updates of the tables
    # on the servers are those of plain Keras.
    model.compile(
        keras.optimizers.Adagrad(FLAGS.learning_rate),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(from_logits=True, name="auc")],
        steps_per_execution=FLAGS.steps_per_execution,
    )
    return model


if __name__ == "__main__":
    program.set_defaults(DATA, **DEFAULTS)
    task.main(main)
