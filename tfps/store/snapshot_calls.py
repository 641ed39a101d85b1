"""How servers are called to read and write files: all at once, and with errors of ours."""

import concurrent.futures
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfps import _tf, errors
from tfps.store.snapshot_folder import FILE_ERRORS


def save(prefix: str, names: Sequence[str], tensors: Sequence[Any]) -> None:
    """Writes tensors to a checkpoint, on the device in scope."""
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )


def restored(prefix: str, names: Sequence[str], dtypes: Sequence[tf.DType]) -> list[tf.Tensor]:
    """Reads tensors of a checkpoint, on the device in scope."""
    return tf.raw_ops.RestoreV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), dtypes=dtypes
    )


def reader_of(prefix: str) -> Any:
    """Reads tensors of a checkpoint by name, with `get_tensor`.

    Raises:
      SnapshotDamaged: the checkpoint cannot be opened.
    """
    try:
        return tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, OSError, ValueError) as e:
        raise errors.SnapshotDamaged(f"{prefix} cannot be read: {_said(e)}") from e


def checked(read: Callable[[str], Any], who: str) -> Callable[[str], np.ndarray]:
    """Lets a function that reads tensors by name raise `SnapshotDamaged` where it cannot."""

    def call(name: str) -> np.ndarray:
        try:
            return np.asarray(read(name))
        except (tf.errors.OpError, RuntimeError) as e:  # The reader's errors have no class.
            raise errors.SnapshotDamaged(f"{who}: {_said(e)}") from e

    return call


@contextlib.contextmanager
def file_errors(who: str, kind: type[errors.Error]) -> Iterator[None]:
    """Turns an error about files into one of ours; an error about servers stays."""
    try:
        yield
    except FILE_ERRORS as e:
        if "context_id" in str(e):
            raise  # The process was started anew, and says nothing of its files.
        raise kind(f"{who}: {_said(e)}") from e


def _said(error: BaseException) -> str:
    return errors.summary(getattr(error, "message", None) or str(error))


@contextlib.contextmanager
def all_at_once(count: int) -> Iterator[Callable]:
    """Gives a function that calls another one for each of several things, in threads.

    Each thread has an executor of its own, so that the errors of one are not those of another.
    """

    def isolated(function: Callable, one: Any) -> Any:
        with _tf.own_executor():
            return function(one)

    with concurrent.futures.ThreadPoolExecutor(max(1, count)) as pool:
        yield lambda function, every: list(pool.map(functools.partial(isolated, function), every))
