"""Trains BERT on text files to find masked words, or finds those in a file.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.bert
  python -m models.bert --data='notes/**/*.md' --save=notes.keras
  python -m models.bert --save=notes.keras --predict=gaps.txt
"""

import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfps
from models import (
    feeding,
    inference,
    packages,
    program,
    streams,
    task,
    text_flags,
    texts,
    transformer,
    word_pieces,
)
from models.bert import gaps, model as network, text
from models.progress import Progress

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(text_flags)
flags.adopt_module_key_flags(packages)
flags.adopt_module_key_flags(inference)

DATA = (
    "Text or pages of HTML to train on: a folder, a glob or a file; the workers read it. Default: "
    "Python's standard library, and PostgreSQL's manual, which `make data-bert` downloads."
)
DEFAULTS = {
    "batch_size": 32,
    "epochs": 8,
    "learning_rate": 5e-4,
    "steps_per_execution": 8,
    "steps_per_epoch": 400,
    "vocabulary": 8000,
    "save": "runs/bert/model.keras",
}

flags.DEFINE_integer("validation_windows", 2048, "Most windows in a validation.", lower_bound=1)


def main(argv: list[str]) -> int:
    """Trains, or finds masked words; returns the exit code."""
    return program.run(argv, train, None if FLAGS.predict is None else predict)


def train(connect: task.Connect) -> None:
    """Runs the chief: learns word pieces, trains, and tells how many masked tokens are found."""
    program.check_flags()
    text_flags.check_heads()
    started = time.perf_counter()
    training, held = streams.split(_files())
    pieces = _learn(training)
    x, y = text.held_out(held, pieces, FLAGS.context, FLAGS.validation_windows)
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    together = way.batches_per_step
    steps = max(1, FLAGS.steps_per_epoch // together)
    batch = FLAGS.batch_size * together
    with way.scope():
        model = _compiled_model(len(pieces), way.updates(steps * FLAGS.epochs))
    board = program.log_dir()
    say(
        f"{model.count_params():,} parameters on {way.describe()}, {len(training.files):,} files "
        f"to train on, {y.size:,} masked tokens held out",
        flush=True,
    )

    def dataset_fn(worker: tfps.Context) -> tf.data.Dataset:
        return text.batches(training, pieces, FLAGS.context, batch, FLAGS.seed, worker)

    trainer = way.trainer(model)
    shown = Progress(
        batch * FLAGS.context, "tokens", lambda logs: f"accuracy {logs['val_accuracy']:.4f}"
    )
    history = program.fit(
        way,
        trainer,
        way.reading(dataset_fn),
        shown,
        board,
        epochs=FLAGS.epochs,
        steps_per_epoch=steps,
        validation_data=feeding.in_order(x, y, 64),
    )
    path = way.path(FLAGS.save)
    model.save(path)
    if not way.chief:
        return
    word_pieces.save(pieces, path)
    held_out = {
        "accuracy": history.history["val_accuracy"][-1],
        "most_frequent": float(np.bincount(y.ravel()).max() / y.size),
        "seconds": time.perf_counter() - started,
    }
    program.write_facts(path, {"held_out": held_out})
    print(
        f"held out: accuracy {held_out['accuracy']:.4f}, {held_out['most_frequent']:.4f} by always "
        f"guessing the most frequent token, after {held_out['seconds']:.0f} s"
    )
    program.finish(way, trainer, board)


def predict() -> None:
    """Writes the likeliest pieces for each `[MASK]` in the lines of --predict."""
    model = program.load_model(FLAGS.save)
    pieces = word_pieces.load(FLAGS.save, transformer.size_of(model).vocabulary)
    guesses = gaps.fill(model, pieces, gaps.read(FLAGS.predict))
    inference.write(list(gaps.Guess._fields), list(zip(*guesses, strict=True)))


def _files() -> Sequence[str]:
    if FLAGS.data is not None:
        found = texts.find(FLAGS.data)
        texts.check(found)
        return found
    manual = packages.files("postgresql-doc-15", "*.html", "bert")
    return [*texts.standard_library(), *manual]


def _learn(training: streams.Part) -> list[str]:
    print("learning word pieces", flush=True)
    return word_pieces.learn(text.sample(training), FLAGS.vocabulary)


def _compiled_model(vocabulary: int, updates: int) -> keras.Model:
    size = transformer.Size(vocabulary, FLAGS.layers, FLAGS.width, FLAGS.heads, FLAGS.context)
    model = network.build(size, FLAGS.dropout)
    optimizer = transformer.optimizer(FLAGS.learning_rate, FLAGS.warmup_steps, updates)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=FLAGS.steps_per_execution,
    )
    return model


if __name__ == "__main__":
    program.set_defaults(DATA, **DEFAULTS)
    task.main(main)
