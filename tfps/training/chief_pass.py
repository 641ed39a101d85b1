"""A pass over a dataset of the chief's: an iterator that may take long to end."""

import _thread
import sys
import threading
import warnings
from typing import Any

import tensorflow as tf

from tfps import _tf_data

# s that `Pass.end` waits for a batch that Python is making.
LIMIT = 60.0


class Pass:
    """An iterator over a dataset of the chief, which is deleted in a thread of its own.

    Deleting an iterator waits for the thread that tunes its dataset. That thread may just have gone
    to sleep for up to 60 s (TensorFlow 2.21): about once in four passes it misses the request to
    end.
    """

    def __init__(self, dataset: tf.data.Dataset):
        """Begins to read ahead when the first element is asked for."""
        self._own: list = []
        self._own.append(_tf_data.Elements(iter(dataset)))

    def next(self) -> Any:
        """The next element; raises `EOFError` if there is none."""
        return self._own[0].next()

    def end(self) -> None:
        """Deletes the iterator, and waits until the thread that reads ahead for it has ended.

        That thread may be in the midst of a generator, which nobody else can read meanwhile. The
        dataset must have no thread that tunes it.
        """

        def delete() -> None:
            self._own.clear()
            ended.set()

        ended = threading.Event()
        threading.Thread(target=delete, name="tfps-ends-pass", daemon=True).start()
        if not ended.wait(LIMIT):
            warnings.warn(
                f"The generator or PyDataset has not given a batch for {LIMIT:.0f} s, and is still "
                "being read; it cannot be used again before it has given that batch",
                stacklevel=2,
            )

    def __del__(self):
        if self._own and not sys.is_finalizing():
            # The garbage collector may run in a thread that holds the lock of `threading`.
            _thread.start_new_thread(self._own.clear, ())
