"""Orders of Keras's input that can be repeated: private names of Keras, as of Keras 3.15.

Keras draws the order of arrays and of a `PyDataset` from generators that nobody can set back, so a
process that goes on in the middle of a pass could not know which batches have been used. Here the
order follows from a seed and from the number of iterators that were made before.
"""

import contextlib
import queue
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src import tree
from keras.src.trainers.data_adapters import array_slicing
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter
from keras.src.trainers.data_adapters.py_dataset_adapter import OrderedEnqueuer, PyDatasetAdapter
from keras.src.utils import rng_utils


def program_seed() -> int | None:
    """What the program gave to `keras.utils.set_random_seed`; None if it did not."""
    return rng_utils.get_random_seed()


class Indexed(keras.utils.PyDataset):
    """A `PyDataset` whose passes begin anywhere, in an order that can be repeated.

    Attributes:
      is_interrupted: whether an epoch has been cut short, and goes on later.
    """

    def __init__(self, whole: keras.utils.PyDataset, seed: int | None):
        """Begins as the whole dataset.

        Args:
          whole: what the user gave.
          seed: of the order; None for the order of the indices.
        """
        super().__init__(whole.workers, whole.use_multiprocessing, whole.max_queue_size)
        self._whole, self._seed = whole, seed
        self.is_interrupted = False
        self.begin(0, 0)

    def begin(self, passes: int, skip: int) -> None:
        """Makes ready for a pass.

        Args:
          passes: how many there were before.
          skip: how many batches are left out at its beginning.
        """
        order = None
        if self._seed is not None and (count := self._whole.num_batches) is not None:
            order = np.random.default_rng([self._seed, passes]).permutation(count)
        self._pass = skip, order  # At once, as threads may read already.

    @property
    def num_batches(self) -> int | None:
        """The number of batches of the pass, or None if there is no end."""
        count = self._whole.num_batches
        return None if count is None else max(0, count - self._pass[0])

    def __getitem__(self, index: int) -> Any:
        """A batch of the pass."""
        skip, order = self._pass
        index += skip
        return self._whole[index if order is None else int(order[index])]

    @property
    def changes(self) -> bool:
        """Whether the whole dataset has hooks of its own, which may reorder it."""
        plain, own = keras.utils.PyDataset, type(self._whole)
        return (own.on_epoch_begin, own.on_epoch_end) != (plain.on_epoch_begin, plain.on_epoch_end)

    def on_epoch_begin(self) -> None:
        """See `keras.utils.PyDataset`; an epoch that goes on does not begin."""
        if not self.is_interrupted:
            self._whole.on_epoch_begin()
        self.is_interrupted = False

    def on_epoch_end(self) -> None:
        """See `keras.utils.PyDataset`; an epoch that is interrupted does not end."""
        if not self.is_interrupted:
            self._whole.on_epoch_end()


def is_indexed(adapter: Any) -> bool:
    """Whether a data adapter is of a `PyDataset`."""
    return isinstance(adapter, PyDatasetAdapter)


def read_anew(adapter: Any) -> None:
    """Makes whoever reads ahead for a data adapter end; the next pass begins with its first batch.

    Keras keeps what was read ahead when an epoch ended for the next epoch, which begins with the
    first index all the same.

    Args:
      adapter: of any input. Only for a `PyDataset` with workers somebody reads ahead.
    """
    if (old := getattr(adapter, "enqueuer", None)) is None:
        return
    whole = adapter.py_dataset
    adapter.enqueuer = OrderedEnqueuer(
        whole, whole.workers, whole.use_multiprocessing, whole.max_queue_size, adapter.shuffle
    )
    with old.start_stop_lock:
        old.running = False
        with contextlib.suppress(queue.Empty):
            while True:  # It may be waiting for a place in the queue, and ends when it gets one.
                old.future_queue.get_nowait()


def end_epoch(adapter: Any, goes_on: bool) -> None:
    """Tells a data adapter that an epoch has ended.

    Args:
      adapter: of any input.
      goes_on: whether the pass goes on in the next epoch, for which what is read ahead is kept.
    """
    if goes_on and getattr(adapter, "enqueuer", None) is not None:
        adapter.py_dataset.on_epoch_end()
        adapter._within_epoch = False
    else:
        adapter.on_epoch_end()


def is_read_in_turn(adapter: Any) -> bool:
    """Whether a data adapter calls Python code of the user's that makes one batch after the other.

    A `PyDataset` with workers is asked for several batches at once.
    """
    if isinstance(adapter, PyDatasetAdapter):
        return adapter.enqueuer is None
    return isinstance(adapter, GeneratorDataAdapter)


def first_batch(adapter: Any) -> Any:
    """The batch of index 0 of an adapter for which `is_indexed` is true; None if it has none.

    Args:
      adapter: of a `PyDataset`, which has been asked for its dataset.
    """
    if adapter.py_dataset.num_batches == 0:
        return None
    batch = adapter._standardize_batch(adapter.py_dataset[0])
    signature = adapter._output_signature
    return next(iter(tf.data.Dataset.from_generator(lambda: [batch], output_signature=signature)))


def is_shuffled(adapter: Any) -> bool:
    """Whether a data adapter is of arrays that are shuffled."""
    return isinstance(adapter, ArrayDataAdapter) and bool(adapter._shuffle)


def in_seeded_order(adapter: Any, seed: int) -> tf.data.Dataset:
    """The batches of an adapter for which `is_shuffled` is true, as `get_tf_dataset` has them.

    Each iterator has another order, which follows from the seed and the number of the iterators
    before.

    Args:
      adapter: of arrays.
      seed: of the orders.
    """
    count, size = adapter._num_samples, adapter._batch_size
    whole = count // size

    def indices(number: tf.Tensor) -> tf.data.Dataset:
        every = tf.range(count, dtype=tf.int64)
        if adapter._shuffle != "batch":
            every = tf.random.experimental.stateless_shuffle(every, [seed, number])
        batches = tf.data.Dataset.from_tensor_slices(tf.reshape(every[: whole * size], [-1, size]))
        if adapter._partial_batch_size:
            rest = tf.reshape(every[whole * size :], [adapter._partial_batch_size])
            batches = batches.concatenate(tf.data.Dataset.from_tensors(rest))
        if adapter._shuffle == "batch":
            batches = batches.enumerate().map(
                lambda i, batch: tf.random.experimental.stateless_shuffle(batch, [seed + i, number])
            )
        return batches

    numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
    order = numbers.prefetch(1).flat_map(indices)
    inputs = array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
    inputs = tf.data.Dataset.from_tensors(tree.lists_to_tuples(inputs)).repeat()
    batches = tf.data.Dataset.zip((order, inputs)).map(
        lambda i, data: tree.traverse(lambda x: _rows(x, i), data),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)


def _rows(x: Any, indices: tf.Tensor) -> Any:
    if isinstance(x, array_slicing.TensorflowSparseWrapper):
        return array_slicing.slice_tensorflow_sparse_wrapper(x, indices)
    if isinstance(x, list | tuple | dict):
        return None  # Go on inside of it.
    return tf.gather(x, indices, axis=0) if tf.is_tensor(x) else x
