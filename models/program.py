"""What the binaries of all models share around `fit`: flags, callbacks, the saved model."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags, logging

import tfps
from models import network, task
from models.progress import Progress
from models.way import Way

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(task)
flags.adopt_module_key_flags(network)

# Each model has defaults of its own; see `set_defaults`.
flags.DEFINE_string("data", None, "Your own data.")
flags.DEFINE_integer("batch_size", 32, "Examples in a worker's batch.", lower_bound=1)
flags.DEFINE_integer("epochs", 1, "Epochs; each ends with a validation.", lower_bound=1)
flags.DEFINE_float("learning_rate", 1e-3, "Peak of the schedule.", lower_bound=0.0)
flags.DEFINE_integer("steps_per_execution", 8, "Steps in one call to a worker.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of weights, data order and dropout.")
flags.DEFINE_string(
    "log_dir",
    None,
    "TensorBoard's folder. Default: the folder of --save and the time, or board in the folder of "
    "--snapshots.",
    allow_override=True,  # absl.logging has a flag of that name.
)
flags.DEFINE_string("save", "runs/model.keras", "File of the trained model.")


class _ProfileMeasured(Exception):
    """The profile is written, and the program is done."""


def set_defaults(data: str, **defaults: Any) -> None:
    """Gives the shared flags the defaults of a model, before the command line is read.

    Args:
      data: what --help says of --data.
      **defaults: default values by the names of flags.
    """
    FLAGS["data"].help = data
    for name, value in defaults.items():
        FLAGS.set_default(name, value)


def run(
    argv: list[str],
    train: Callable[[task.Connect], None],
    instead: Callable[[], None] | None = None,
) -> int:
    """Runs what the command line asks for.

    Args:
      argv: arguments that are no flags; there must be none but the program's name.
      train: what the chief runs; see `task.run`.
      instead: what to run in place of a training, without a cluster.

    Returns:
      The exit code, one of `tfps.exit_codes`; unless it is 0, after one line about what went wrong.

    Raises:
      app.UsageError: there is another argument.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; did you forget to quote a glob?")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if instead is None:
        return task.run(train if FLAGS.profile is None else _profiling(train))
    try:
        instead()
    except tfps.Error as e:
        print(f"error: {e}", file=sys.stderr)
        return tfps.exit_codes.of(e)
    return tfps.exit_codes.DONE


def _profiling(train: Callable[[task.Connect], None]) -> Callable[[task.Connect], None]:
    """What the chief runs with --profile: everything up to `fit`, on a cluster made for that."""

    def run(connect: task.Connect) -> None:
        with contextlib.suppress(_ProfileMeasured):
            train(connect)

    return run


def check_flags() -> None:
    """Checks the flags of the Trainer, and that --save can be written.

    Raises:
      ConfigError: names the flag.
    """
    network.arguments()
    if not FLAGS.save.endswith(".keras"):
        raise tfps.ConfigError(f"--save={FLAGS.save} does not end in .keras; Keras needs that")
    folder = os.path.dirname(FLAGS.save) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise tfps.ConfigError(f"--save: cannot make {folder}: {e.strerror.lower()}") from e
    if not os.access(folder, os.W_OK):
        raise tfps.ConfigError(f"--save={FLAGS.save} cannot be written; choose another folder")


def log_dir() -> str:
    """TensorBoard's folder, of --log_dir or its default."""
    if FLAGS.log_dir:
        return FLAGS.log_dir
    if FLAGS.snapshots:
        return os.path.join(FLAGS.snapshots, "board")  # A job that goes on has one board.
    return os.path.join(os.path.dirname(FLAGS.save), time.strftime("%Y%m%d-%H%M%S"))


def printer(way: Way) -> Callable[..., None]:
    """`print` for the chief; a function that does nothing for processes that print nothing."""
    return print if way.chief else _silence


def fit(
    way: Way,
    trainer: Any,
    x: Any,
    shown: Progress,
    board: str,
    own_callbacks: Sequence[keras.callbacks.Callback] = (),
    **arguments: Any,
) -> keras.callbacks.History:
    """Trains with the callbacks that all models have, and the model's own.

    Args:
      way: the connected way of training.
      trainer: what `way.trainer` returned.
      x: the training data, as `fit` takes it.
      shown: what the chief prints.
      board: TensorBoard's folder.
      own_callbacks: further callbacks of the chief; other processes that train have none of them.
      **arguments: of `fit`.

    Returns:
      Keras's history.

    Raises:
      Error: the loss became infinite or NaN.
    """
    if FLAGS.profile is not None:
        profile = trainer.profile(x)
        profile.write(FLAGS.profile)
        print(
            f"written: {FLAGS.profile}; go on with {_program('python')} -m tfps.plan "
            f"--profile={FLAGS.profile} --workers=8 --ps=4 --bandwidth=1gbit",
            flush=True,
        )
        raise _ProfileMeasured
    history = trainer.fit(
        x,
        callbacks=[
            *way.callbacks(board),
            *([shown, *own_callbacks] if way.chief else []),
            keras.callbacks.TensorBoard(way.path(board), update_freq=50, write_graph=False),
            keras.callbacks.TerminateOnNaN(),
        ],
        verbose=0,
        **arguments,
    )
    if not math.isfinite(history.history["loss"][-1]):
        raise tfps.Error(
            f"the loss became {history.history['loss'][-1]} in epoch {len(history.epoch)}; use a "
            f"smaller --learning_rate (now {FLAGS.learning_rate:g}); nothing was saved"
        )
    return history


def outputs(model: keras.Model, x: Any, batch_size: int = 1024) -> np.ndarray:
    """The model's outputs in inference, computed in this process alone.

    Args:
      model: a model that has its weights.
      x: float32 [n, ...], or a dictionary of such arrays.
      batch_size: number of examples that are computed at a time.

    Returns:
      The outputs of all n examples, in order.
    """
    arrays = x if isinstance(x, dict) else {"": x}
    count = len(next(iter(arrays.values())))
    found = []
    for first in range(0, count, batch_size):
        part = {name: a[first : first + batch_size] for name, a in arrays.items()}
        batch = part if isinstance(x, dict) else part[""]
        found.append(keras.ops.convert_to_numpy(model(batch, training=False)))
    return np.concatenate(found)


def finish(way: Way, trainer: Any, board: str) -> None:
    """Prints what crossed the network, where the model is, and how to look at the run."""
    if traffic := way.traffic(trainer):
        print(traffic)
    print(f"saved: {FLAGS.save}")
    print(f"look at the run: {_program('tensorboard')} --logdir {board}", flush=True)


def write_facts(path: str, facts: dict) -> None:
    """Writes beside a saved model what is needed to use it, as JSON.

    It is written before the model is measured, and again with what was measured, so that a program
    that fails in between leaves a model that can be used.
    """
    final = facts_path(path)
    draft = f"{final}.draft"
    with open(draft, "w", encoding="utf-8") as f:
        json.dump(facts, f, indent=1)
    os.replace(draft, final)


def facts_path(path: str) -> str:
    """The path of the facts of a saved model: the model's, with the suffix .json."""
    return os.path.splitext(path)[0] + ".json"


def load(path: str) -> tuple[keras.Model, dict]:
    """Loads a saved model and its facts.

    Raises:
      ConfigError: there is no such model, or the facts beside it are missing.
    """
    model = load_model(path)
    try:
        with open(facts_path(path), encoding="utf-8") as f:
            return model, json.load(f)
    except (OSError, ValueError) as e:
        raise tfps.ConfigError(
            f"--save={path}: {facts_path(path)} cannot be read; copy it beside the model"
        ) from e


def load_model(path: str, flag: str = "save") -> keras.Model:
    """Loads a saved model, to use it.

    Args:
      path: of the model.
      flag: the flag that named it, for errors.

    Raises:
      ConfigError: there is no such model.
    """
    if not os.path.exists(path):
        raise tfps.ConfigError(f"--{flag}={path} does not exist; train a model first")
    try:
        return keras.models.load_model(path, compile=False)
    except (ValueError, OSError) as e:
        raise tfps.ConfigError(f"--{flag}={path} is no saved model of this program") from e


def _silence(*args, **kwargs) -> None:
    """Stands in for `print` in processes that are not the chief."""


def _program(name: str) -> str:
    """The command of a program that is installed beside this Python."""
    path = os.path.join(os.path.dirname(sys.executable), name)
    return os.path.relpath(path) if os.path.exists(path) else name
