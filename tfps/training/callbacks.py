"""What the trainer needs to know about a Keras callback."""

import warnings

import keras

from tfps.embeddings.layer import layer_of

_BATCH_HOOKS = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
_TEST_BATCH_HOOKS = ("on_test_batch_begin", "on_test_batch_end")


def may_look_secretly(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback may look at weights in a way that the chief's copy does not notice.

    Keras's own callbacks read Keras variables. Others may call functions that were traced before
    `fit`, or hold a `tf.Variable`. A callback that never looks at weights in its batch hooks may
    say so with a class attribute `reads_weights = False`; there is no need to.
    """
    of_keras = type(callback) is not keras.callbacks.LambdaCallback and (
        getattr(keras.callbacks, type(callback).__name__, None) is type(callback)
    )
    return not of_keras and getattr(callback, "reads_weights", None) is not False


def warn_of_rows(callback: keras.callbacks.Callback, model: keras.Model) -> None:
    """Warns if a callback will restore weights of which the chief may have a part only."""
    if not getattr(callback, "restore_best_weights", False):
        return
    for variable in model.variables:
        layer = layer_of(variable)
        if layer is not None and variable.shape[0] < layer.settings.expected:
            warnings.warn(
                f"{type(callback).__name__}(restore_best_weights=True) restores what the chief "
                f"has, which has room for {variable.shape[0]} rows of {variable.path}, of "
                f"expected={layer.settings.expected}; with more rows it ends in an error. Set "
                "restore_best_weights=False and use snapshots=",
                stacklevel=2,
            )


def has_batch_hooks(callback: keras.callbacks.Callback) -> bool:
    """Whether the callback does anything at the training batch hooks."""
    return _has_any(callback, _BATCH_HOOKS)


def has_test_batch_hooks(callback: keras.callbacks.Callback) -> bool:
    """Whether the callback does anything at the batch hooks of evaluation."""
    return _has_any(callback, _TEST_BATCH_HOOKS)


def _has_any(callback: keras.callbacks.Callback, hooks: tuple[str, ...]) -> bool:
    base = keras.callbacks.Callback
    return any(
        # What is no `Callback`, such as a mock, may have hooks that its class does not know.
        getattr(type(callback), hook, None) is not getattr(base, hook)
        # LambdaCallback assigns its hooks to the instance.
        or callback.__dict__.get(hook) is not None
        for hook in hooks
    )


def end_index(last: int, group: int) -> int:
    """The index that Keras gives to the hook after a call.

    Args:
      last: index of the last batch that is done.
      group: how many batches a call has. After a shorter call, at the end of the input, Keras gives
        the index that the last batch would have had. With several workers, calls that were given
        out before may end after it.
    """
    return last + -(last + 1) % group
