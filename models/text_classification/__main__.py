"""Trains a classifier of texts, by default of the stars that reviews of clothing give.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.text_classification
  python -m models.text_classification --data=mails.tsv --text_columns=subject,body
  python -m models.text_classification --predict=new.tsv --out=folders.tsv
"""

import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from models import feeding, inference, packages, program, tables, task
from models.progress import Progress
from models.text_classification import confusion, examples, model as network

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(packages)
flags.adopt_module_key_flags(inference)

DATA = (
    "A CSV file, or a TSV file if its name ends in .tsv, whose first line names the columns. "
    "Default: reviews of clothing, which `make data-text_classification` downloads."
)
DEFAULTS = {
    "batch_size": 64,
    "epochs": 5,
    "learning_rate": 1e-3,
    "steps_per_execution": 8,
    "sparse_updates": "lazy",
    "save": "runs/text_classification/model.keras",
}

flags.DEFINE_list(
    "text_columns",
    None,
    "Columns that together are the text. Default: text, or title and text of reviews.",
)
flags.DEFINE_string(
    "class_column", None, "The column of classes. Default: label, or the stars of the reviews."
)
flags.DEFINE_integer("known_words", 20000, "Most words to know.", lower_bound=3)
flags.DEFINE_integer("text_words", 128, "Words of a text; the rest is left out.", lower_bound=4)
flags.DEFINE_integer("word_width", 64, "Elements of a word's vector.", lower_bound=1)
flags.DEFINE_integer("run_filters", 64, "Convolutions for each length of runs.", lower_bound=1)
flags.DEFINE_float("dropped", 0.5, "Dropout rate before the last layer.", lower_bound=0.0)
flags.DEFINE_float(
    "balance",
    0.5,
    "Weight of an example: its class's frequency to the minus this. 0 is for the best accuracy, 1 "
    "makes all classes weigh the same.",
    lower_bound=0.0,
    upper_bound=1.0,
)


def main(argv: list[str]) -> int:
    """Trains, or predicts; returns the exit code."""
    return program.run(argv, train, None if FLAGS.predict is None else predict)


def train(connect: task.Connect) -> None:
    """Runs the chief: reads the texts, trains, and tells how well the classes are found."""
    program.check_flags()
    started = time.perf_counter()
    columns, all_texts = _load()
    y, names = all_texts.classes, all_texts.names
    training, held = tables.held_out(len(y))
    words = network.vectorizer(all_texts.texts[training], FLAGS.known_words, FLAGS.text_words)
    x = _numbered(words, all_texts.texts)
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    batch = FLAGS.batch_size * way.batches_per_step
    data = feeding.shuffled(x[training], y[training], batch, FLAGS.seed)
    weights = tf.constant(_weights(y[training], len(names)))
    data = data.map(lambda x, y: (x, y, tf.gather(weights, y)))
    with way.scope():
        updates = way.updates(FLAGS.epochs * (len(training) // batch))
        model = _compiled_model(words.vocabulary_size(), len(names), updates)
    board = program.log_dir()
    say(
        f"{model.count_params():,} parameters on {way.describe()}, {len(training):,} texts of "
        f"{len(names)} classes to train on, {len(held):,} held out",
        flush=True,
    )
    trainer = way.trainer(model)
    shown = Progress(batch, "texts", lambda logs: f"accuracy {logs['val_accuracy']:.4f}")
    program.fit(
        way,
        trainer,
        data,
        shown,
        board,
        epochs=FLAGS.epochs,
        validation_data=feeding.in_order(x[held], y[held], 256),
    )
    path = way.path(FLAGS.save)
    network.whole(words, model).save(path)
    if not way.chief:
        return
    facts = {"columns": columns, "classes": names}
    program.write_facts(path, facts)
    counts = confusion.matrix(y[held], program.outputs(model, x[held]).argmax(1), len(names))
    held_out = {
        "macro_f1": confusion.macro_f1(counts),
        "accuracy": float(np.diag(counts).sum() / counts.sum()),
        "seconds": time.perf_counter() - started,
    }
    program.write_facts(path, {**facts, "held_out": held_out})
    confusion.show(board, names, counts)
    print(
        f"held out: macro-F1 {held_out['macro_f1']:.4f}, accuracy {held_out['accuracy']:.4f}, "
        f"after {held_out['seconds']:.0f} s"
    )
    program.finish(way, trainer, board)


def predict() -> None:
    """Writes the class of each text of --predict, with its probability."""
    model, facts = program.load(FLAGS.save)
    columns = FLAGS.text_columns or facts["columns"]
    table = tables.read_csv(FLAGS.predict, "predict")
    texts = examples.joined(table, columns, "predict")
    chances = program.outputs(model, tf.constant(texts), 256)
    names = [facts["classes"][i] for i in chances.argmax(1)]
    lines = [" ".join(text.split()) for text in texts]
    inference.write(["text", "class", "probability"], [lines, names, chances.max(1)])


def _load() -> tuple[list[str], examples.Examples]:
    """(columns that are the text, the examples)."""
    reviews = FLAGS.data is None
    columns = FLAGS.text_columns or (examples.REVIEW_TEXT if reviews else ["text"])
    label = FLAGS.class_column or (examples.REVIEW_LABEL if reviews else "label")
    table = examples.reviews() if reviews else tables.read_csv(FLAGS.data)
    return columns, examples.Examples.of(table, columns, label)


def _numbered(words: keras.layers.TextVectorization, texts: np.ndarray) -> np.ndarray:
    """Numbers of words, int32 [n, length]."""
    batches = tf.data.Dataset.from_tensor_slices(texts).batch(1024)
    return np.concatenate([words(batch).numpy() for batch in batches]).astype(np.int32)


def _weights(classes: np.ndarray, count: int) -> np.ndarray:
    """The weight of an example of each class, float32 [classes]; 1 on average over examples."""
    frequencies = np.bincount(classes, minlength=count) / len(classes)
    weights = np.maximum(frequencies, 1 / len(classes)) ** -FLAGS.balance
    return (weights / (weights * frequencies).sum()).astype(np.float32)


def _compiled_model(vocabulary: int, classes: int, updates: int) -> keras.Model:
    model = network.build(
        vocabulary, FLAGS.text_words, classes, FLAGS.word_width, FLAGS.run_filters, FLAGS.dropped
    )
    rate = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, max(1, updates))
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=FLAGS.steps_per_execution,
    )
    return model


if __name__ == "__main__":
    program.set_defaults(DATA, **DEFAULTS)
    task.main(main)
