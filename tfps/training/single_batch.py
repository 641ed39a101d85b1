"""Training on one batch: `train_on_batch`, which is an epoch without callbacks."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras_variables, errors
from tfps.training.epoch import Epoch
from tfps.training.feeds import Feed
from tfps.training.hooks import Hooks
from tfps.training.policy import ConsistencyPolicy
from tfps.training.session import Session


def feed_of_batch(session: Session, x: Any, y: Any = None, sample_weight: Any = None) -> Feed:
    """The feed of one batch, which Keras adapts as it adapts those of a generator.

    So the size of the batch is no part of its spec, and a batch of another size has the same step.

    Args:
      session: of the trainer.
      x, y, sample_weight: the batch, which is not cut.
    """
    # A step sees None for what is missing, whether it is left out here or not. As in `fit`, a model
    # with several inputs gets them as a tuple.
    given = [x, y, sample_weight]
    while given[1:] and given[-1] is None:
        given.pop()
    given = [_tensors(part) for part in given]
    if sample_weight is not None:
        given[2] = _one_for_each(given[2], given[0])
    batch = keras.tree.lists_to_tuples(tuple(given))
    return session.feed((one for one in [batch]), None, shuffle=False, group=1)


def _tensors(part: Any) -> Any:
    """The arrays of a batch as tensors; strings and frames are none that a generator may yield.

    What is sparse or ragged, and what is no array, is left to Keras.
    """

    def one(leaf: Any) -> Any:
        is_array = hasattr(leaf, "__array__") and not tf.is_tensor(leaf)
        return tf.convert_to_tensor(leaf) if is_array else leaf

    return keras.tree.map_structure(one, part)


def _one_for_each(weights: Any, x: Any) -> Any:
    """Weights with one for each example, where a number was given for all of them."""
    size = next(len(leaf) for leaf in keras.tree.flatten(x) if leaf is not None)

    def one(weight: Any) -> Any:
        return weight if np.ndim(weight) else np.full([size], weight)

    return keras.tree.map_structure(one, weights)


def train(
    session: Session,
    feed: Feed,
    policy: Callable[[], ConsistencyPolicy],
    following: Callable[[], contextlib.AbstractContextManager[None]],
) -> dict[str, float]:
    """Trains on what is in a feed; returns the logs.

    As in Keras, optimizers do not end training (`use_ema`), since more batches may follow, and
    `stop_training` has no meaning.

    Args:
      session: of the trainer.
      feed: of the batch.
      policy: gives the policy in force.
      following: makes a context in which the model follows the servers.

    Raises:
      ConfigError: `fit` runs, or the model cannot be trained here.
      TaskLost: a worker or ps went away.
      WorkerError: the step failed.
    """
    if session.is_served and session.served.store.copy.is_following:
        raise errors.ConfigError(
            "train_on_batch was called while fit runs; call it from outside of its callbacks"
        )
    session.ledger.begin_fit(None)
    session.prepare(feed, train=True)
    model, state = session.model, session.state
    if state.begin_fit() is not None:
        # The state was restored. At which batch of which epoch it was taken is of no concern here.
        state.begin_fit()
    stops, model.stop_training = model.stop_training, False
    callbacks = keras.callbacks.CallbackList(add_history=False, add_progbar=False, model=model)
    hooks = Hooks(callbacks, lambda: session.served.store.copy)
    try:
        with _keras_variables.keras_functions_aside(model), following():
            logs = Epoch(session, feed, hooks, policy).run(final=False)
    finally:
        state.end_fit()
        hooks.close()
        model.stop_training = stops
    session.served.program.move_seeds()
    return logs
