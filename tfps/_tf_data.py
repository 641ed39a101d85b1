"""Datasets and iterators: private names of TensorFlow 2.21."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.data.util import structure
from tensorflow.python.eager import context, executor
from tensorflow.python.framework import random_seed


def skipping(dataset: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """The dataset without its first elements, on the device on which the dataset is."""
    with tf.device(dataset._variant_tensor.device):
        return dataset.skip(count)


class Elements:
    """The elements of an iterator of this process, one after the other.

    An optional for each element, which asks whether there is one and then for its value, takes ten
    times as long; Python's `next` takes four times as long.
    """

    def __init__(self, iterator: tf.data.Iterator):
        """Reads nothing yet.

        Args:
          iterator: on this process's device.
        """
        self._iterator = iterator
        self._flat = {
            "output_types": iterator._flat_output_types,
            "output_shapes": iterator._flat_output_shapes,
        }
        self._spec = iterator.element_spec
        leaves = tf.nest.flatten(self._spec)
        self._is_plain = all(isinstance(leaf, tf.TensorSpec) for leaf in leaves)
        # The end is an error, which must not be found by others who use the same executor.
        self._executor = executor.new_executor(enable_async=False)

    def next(self) -> Any:
        """The next element.

        Raises:
          EOFError: there is none.
          tf.errors.OpError: the dataset failed.
        """
        try:
            with context.executor_scope(self._executor):
                flat = tf.raw_ops.IteratorGetNext(
                    iterator=self._iterator._iterator_resource, **self._flat
                )
        except tf.errors.OutOfRangeError as e:
            self._executor.clear_error()
            if "End of sequence" not in e.message:
                raise
            raise EOFError from None
        except tf.errors.OpError:
            self._executor.clear_error()
            raise
        if self._is_plain:
            return tf.nest.pack_sequence_as(self._spec, flat)
        return structure.from_compatible_tensor_list(self._spec, flat)


def without_tuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset without the thread that tunes it, unless the user has asked for that thread.

    Deleting an iterator waits for that thread, at times for as long as the iterator was used.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    with tf.device(dataset._variant_tensor.device):
        if dataset.options().autotune.enabled is not None:
            return dataset
        return dataset.with_options(options)


def are_alike(spec: Any, other: Any) -> bool:
    """Whether elements of one spec can be taken for elements of the other."""
    return structure.are_compatible(spec, other)


def length_of(dataset: tf.data.Dataset) -> int:
    """The number of a dataset's elements, or a negative number: no end, or not known."""
    with tf.device(dataset._variant_tensor.device):
        return int(dataset.cardinality().numpy())


class Seeds:
    """Makes functions of the user's draw the same seeds whenever they are called again.

    A shuffle without a seed then has the same order in a dataset that is made again. This is so for
    what draws from the global seeds of TensorFlow, NumPy and Python.
    """

    def __init__(self) -> None:
        """Starts with no function called."""
        self._drawn: dict[int, tuple[Any, Any, Any, Any]] = {}

    @contextlib.contextmanager
    def of(self, key: int) -> Iterator[None]:
        """A context for a call; the first one with a key sets what those after it draw.

        After the first call, the global seeds are where the call has left them, and after every
        other call they are where they were before.

        Args:
          key: of the function.
        """
        if (drawn := self._drawn.get(key)) is not None:
            with _global_seeds_kept():
                _set_global_seeds(*drawn)
                yield
        elif context.global_seed() is not None:
            self._drawn[key] = _global_seeds()
            yield
        else:
            # Without a global seed, TensorFlow gives operations that have no seed of their own one
            # that nobody knows. With this global seed, those that have one do what they did.
            state = random.Random().getstate()
            self._drawn[key] = (random_seed.DEFAULT_GRAPH_SEED, state, *_global_seeds()[2:])
            ours = context.context()
            kept = vars(ours).get("_rng")
            _set_global_seeds(*self._drawn[key])
            try:
                yield
            finally:
                ours._seed, ours._rng = None, kept


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """A context in which what draws from the global seeds draws what follows from some numbers.

    A global seed of TensorFlow that the user has set stays: operations that have a seed of their
    own do what they did. After the context, the global seeds are where they were before.
    """
    seed = context.global_seed()
    drawn = np.random.SeedSequence([n % 2**64 for n in numbers]).generate_state(3)
    with _global_seeds_kept():
        ours = context.context()
        ours._seed = random_seed.DEFAULT_GRAPH_SEED if seed is None else seed
        ours._rng = random.Random(int(drawn[0]))
        np.random.seed(drawn[1])
        random.seed(int(drawn[2]))
        yield


def _global_seeds() -> tuple[Any, Any, Any, Any]:
    """The global seed of TensorFlow, and the states of what seeds are drawn from."""
    ours = context.context()
    state = ours._rng.getstate() if ours._seed is not None else None
    return ours._seed, state, np.random.get_state(), random.getstate()


def _set_global_seeds(seed: Any, state: Any, numpy_state: Any, python_state: Any) -> None:
    ours = context.context()
    ours._seed = seed
    if state is not None:
        ours._rng = random.Random()
        ours._rng.setstate(state)
    np.random.set_state(numpy_state)
    random.setstate(python_state)


@contextlib.contextmanager
def _global_seeds_kept() -> Iterator[None]:
    kept = _global_seeds()
    try:
        yield
    finally:
        _set_global_seeds(*kept)
