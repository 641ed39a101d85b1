"""Trains a U-Net that says of each pixel what it shows, by default land, sea or lake.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.segmentation
  python -m models.segmentation --data=streets --image_size=128 --save=streets.keras
  python -m models.segmentation --save=streets.keras --predict=new --masks=found --out=shares.tsv
"""

import os
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfps
from models import feeding, image_files, inference, packages, program, tables, task
from models.progress import Progress
from models.segmentation import measures, model as network, pictures
from models.segmentation.board import ShowMasks

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(packages)
flags.adopt_module_key_flags(inference)
flags.adopt_module_key_flags(image_files)

DATA = (
    "A folder with the folders images and masks (PNG, JPEG, GIF, BMP); a mask has the name of its "
    "image, and a colour for each class. Default: a map of the Earth, which "
    "`make data-segmentation` downloads."
)
DEFAULTS = {
    "batch_size": 16,
    "epochs": 8,
    "learning_rate": 2e-3,
    "steps_per_execution": 4,
    "save": "runs/segmentation/model.keras",
}

flags.DEFINE_integer("unet_filters", 12, "Channels of the first convolutions.", lower_bound=1)
flags.DEFINE_integer("levels", 3, "How often the U-Net halves an image.", lower_bound=1)
flags.DEFINE_float(
    "rarity",
    0.33,
    "Exponent: a pixel of a class that is n times as rare counts n ** rarity times as much.",
    lower_bound=0.0,
)
flags.DEFINE_string("masks", None, "Folder for the masks of the images of --predict, as PNG.")


def main(argv: list[str]) -> int:
    """Trains, or predicts; returns the exit code."""
    return program.run(argv, train, None if FLAGS.predict is None else predict)


def train(connect: task.Connect) -> None:
    """Runs the chief: reads images and masks, trains, and tells how well masks are found."""
    _check_flags()
    started = time.perf_counter()
    size = FLAGS.image_size
    read = pictures.read_folders(FLAGS.data, size) if FLAGS.data else pictures.read_earth(size)
    x, y, names = read.pixels, read.masks, read.names
    training, held = tables.held_out(len(y))
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    batch = FLAGS.batch_size * way.batches_per_step
    data = _weighted(
        feeding.shuffled(x[training], y[training], batch, FLAGS.seed),
        measures.weights(y[training], len(names), FLAGS.rarity),
    )
    with way.scope():
        model = _compiled_model(len(names), way.updates(FLAGS.epochs * (len(training) // batch)))
    board = program.log_dir()
    say(
        f"{model.count_params():,} parameters on {way.describe()}, {len(training):,} images of "
        f"{len(names)} classes to train on, {len(held):,} held out",
        flush=True,
    )
    trainer = way.trainer(model)
    program.fit(
        way,
        trainer,
        data,
        Progress(batch, "images", lambda logs: f"mean IoU {logs['val_iou']:.4f}"),
        board,
        own_callbacks=[ShowMasks(x[held], y[held], read.colours, board)],
        epochs=FLAGS.epochs,
        validation_data=feeding.in_order(x[held], y[held], 64),
    )
    path = way.path(FLAGS.save)
    model.save(path)
    if not way.chief:
        return
    facts = {"classes": names, "colours": read.colours.tolist()}
    program.write_facts(path, facts)
    held_out = _measured(model, read, training, held)
    held_out["seconds"] = time.perf_counter() - started
    program.write_facts(path, {**facts, "held_out": held_out})
    print(_report(held_out))
    program.finish(way, trainer, board)


def predict() -> None:
    """Writes the share of each class in each image of --predict, and the masks, to --masks."""
    model, facts = program.load(FLAGS.save)
    names, colours = facts["classes"], np.array(facts["colours"], np.uint8)
    shares = []
    paths = image_files.find_to_predict(FLAGS.predict)
    for path in paths:
        image = image_files.read(path, "predict")
        resized = image_files.resized(image, model.input_shape[1], 3)
        mask = pictures.nearest(_masks(model, resized[None])[0], *image.shape[:2])
        shares.append(np.bincount(mask.ravel(), minlength=len(names)) / mask.size)
        if FLAGS.masks is not None:
            _write_mask(path, colours[mask])
    inference.write(["file", *names], [paths, *np.transpose(shares)])


def _check_flags() -> None:
    program.check_flags()
    if FLAGS.image_size % 2**FLAGS.levels:
        raise tfps.ConfigError(
            f"--image_size={FLAGS.image_size} is not a multiple of {2**FLAGS.levels}, as "
            f"--levels={FLAGS.levels} needs; change one of them"
        )


def _weighted(data: tf.data.Dataset, weights: np.ndarray) -> tf.data.Dataset:
    return data.map(lambda x, y: (x, y, tf.gather(weights, tf.cast(y, tf.int32))))


def _masks(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """What the model says: int64 [n, size, size]."""
    return program.outputs(model, pixels, 64).argmax(-1)


def _measured(
    model: keras.Model, read: pictures.Pictures, training: np.ndarray, held: np.ndarray
) -> dict:
    """The IoU of each class on what was held out, beside that of colours alone."""
    x, y, names = read.pixels, read.masks, read.names
    table = measures.ColourTable(x[training], y[training], len(names))
    ours = measures.iou(y[held], _masks(model, x[held]), len(names))
    by_colour = measures.iou(y[held], table.masks(x[held]), len(names))
    return {
        "iou": float(np.nanmean(ours)),
        "colour_table": float(np.nanmean(by_colour)),
        "classes": [
            {"name": name, "iou": float(a), "colour_table": float(b)}
            for name, a, b in zip(names, ours, by_colour, strict=True)
        ],
    }


def _report(held_out: dict) -> str:
    each = [
        f"{one['name']} {one['iou']:.4f} ({one['colour_table']:.4f})" for one in held_out["classes"]
    ]
    return (
        f"held out: mean IoU {held_out['iou']:.4f} (by colours alone "
        f"{held_out['colour_table']:.4f}), after {held_out['seconds']:.0f} s\n"
        f"IoU of {', '.join(each)}"
    )


def _write_mask(path: str, mask: np.ndarray) -> None:
    """Writes the mask of an image, uint8 [height, width, 3], at the image's place in --predict."""
    root = FLAGS.predict if os.path.isdir(FLAGS.predict) else os.path.dirname(path) or "."
    stem = os.path.splitext(os.path.relpath(path, root))[0]
    out = os.path.join(FLAGS.masks, f"{stem}.png")
    try:
        os.makedirs(os.path.dirname(out), exist_ok=True)
        with open(out, "wb") as f:
            f.write(tf.io.encode_png(mask).numpy())
    except OSError as e:
        raise tfps.ConfigError(f"--masks: {out} cannot be written: {e.strerror}") from e


def _compiled_model(classes: int, updates: int) -> keras.Model:
    model = network.build(FLAGS.image_size, classes, FLAGS.unet_filters, FLAGS.levels)
    rate = keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, max(1, updates))
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.MeanIoU(classes, sparse_y_pred=False, name="iou")],
        steps_per_execution=FLAGS.steps_per_execution,
    )
    return model


if __name__ == "__main__":
    program.set_defaults(DATA, **DEFAULTS)
    task.main(main)
