"""Trains a classifier of images, by default of handwritten digits.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.image_classification
  python -m models.image_classification --data=animals --image_size=64 --save=animals.keras
  python -m models.image_classification --save=animals.keras --predict=new --out=classes.tsv
"""

import time

import keras
import numpy as np
from absl import flags

from models import feeding, image_files, inference, packages, program, tables, task
from models.image_classification import images, model as network
from models.progress import Progress

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(packages)
flags.adopt_module_key_flags(inference)
flags.adopt_module_key_flags(image_files)

DATA = (
    "A folder with a folder of images (PNG, JPEG, GIF, BMP) for each class. Default: 10,000 digits "
    "of MNIST, which `make data-image_classification` downloads."
)
DEFAULTS = {
    "batch_size": 64,
    "epochs": 6,
    "learning_rate": 2e-3,
    "steps_per_execution": 8,
    "save": "runs/image_classification/model.keras",
}

flags.DEFINE_enum("colours", "rgb", ["rgb", "gray"], "What is read of the images of --data.")
flags.DEFINE_integer("filters", 16, "Channels of the first convolutions.", lower_bound=1)
flags.DEFINE_float("drop", 0.3, "Dropout rate before the last layer.", lower_bound=0.0)


def main(argv: list[str]) -> int:
    """Trains, or predicts; returns the exit code."""
    return program.run(argv, train, None if FLAGS.predict is None else predict)


def train(connect: task.Connect) -> None:
    """Runs the chief: reads the images, trains, and tells how many are classified right."""
    program.check_flags()
    started = time.perf_counter()
    if FLAGS.data is None:
        all_images = images.read_digits()
    else:
        channels = 1 if FLAGS.colours == "gray" else 3
        all_images = images.read_folders(FLAGS.data, FLAGS.image_size, channels)
    x, y, names = all_images.pixels, all_images.classes, all_images.names
    training, held = tables.held_out(len(y))
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    batch = FLAGS.batch_size * way.batches_per_step
    data = feeding.shuffled(x[training], y[training], batch, FLAGS.seed)
    with way.scope():
        updates = way.updates(FLAGS.epochs * (len(training) // batch))
        model = _compiled_model(x.shape[1:], len(names), updates)
    board = program.log_dir()
    say(
        f"{model.count_params():,} parameters on {way.describe()}, {len(training):,} images of "
        f"{len(names)} classes to train on, {len(held):,} held out",
        flush=True,
    )
    trainer = way.trainer(model)
    shown = Progress(batch, "images", lambda logs: f"accuracy {logs['val_accuracy']:.4f}")
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
    model.save(path)
    if not way.chief:
        return
    facts = {"classes": names}
    program.write_facts(path, facts)
    found = program.outputs(model, x[held], 256).argmax(1)
    accuracy = float((found == y[held]).mean())
    seconds = time.perf_counter() - started
    held_out = {"accuracy": accuracy, "seconds": seconds}
    program.write_facts(path, {**facts, "held_out": held_out})
    print(f"held out: accuracy {accuracy:.4f}, after {seconds:.0f} s")
    print(_mistakes(names, y[held], found))
    program.finish(way, trainer, board)


def predict() -> None:
    """Writes the class of each image of --predict, with its probability."""
    model, facts = program.load(FLAGS.save)
    _, size, _, channels = model.input_shape
    paths = image_files.find_to_predict(FLAGS.predict)
    pixels = np.stack([image_files.decode(path, size, channels, "predict") for path in paths])
    chances = keras.ops.convert_to_numpy(keras.ops.softmax(program.outputs(model, pixels, 256)))
    names = [facts["classes"][i] for i in chances.argmax(1)]
    inference.write(["file", "class", "probability"], [paths, names, chances.max(1)])


def _mistakes(names: list[str], classes: np.ndarray, found: np.ndarray) -> str:
    """A line of the mistakes that are made most often."""
    wrong = classes != found
    pairs, counts = np.unique(
        np.stack([classes[wrong], found[wrong]], 1), axis=0, return_counts=True
    )
    most = np.argsort(-counts, kind="stable")[:3]
    told = [f"{names[a]} for {names[b]} {counts[i]}" for i in most for a, b in [pairs[i]]]
    return f"taken most often: {', '.join(told)} times" if told else "no mistakes"


def _compiled_model(shape: tuple[int, int, int], classes: int, updates: int) -> keras.Model:
    model = network.build(shape[0], shape[2], classes, FLAGS.filters, FLAGS.drop)
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
