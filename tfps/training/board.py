"""What TensorBoard shows of training beside Keras's own curves: the run `tfps`."""

import itertools
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_numbers = itertools.count()

# By this TensorBoard knows a text.
_TEXT = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="text")
)


class Board:
    """Writes the stats of epochs into the folders of TensorBoard callbacks.

    Each folder has a run `tfps` for them, beside Keras's runs `train` and `validation`, which hold
    what Keras writes and nothing else.
    """

    def __init__(self, callbacks: keras.callbacks.CallbackList):
        """Notes the folders; a file is made with the first epoch.

        Args:
          callbacks: of the run.
        """
        self._folders = [
            os.path.join(str(one.log_dir), "tfps")
            for one in callbacks.callbacks
            if isinstance(one, keras.callbacks.TensorBoard)
        ]
        self._writers: list[tf.io.TFRecordWriter] = []

    def write(
        self,
        epoch: int,
        stats: dict[str, float],
        staleness: np.ndarray,
        lines: Sequence[str] = (),
    ) -> None:
        """Writes one epoch.

        Args:
          epoch: index.
          stats: name -> value. TensorBoard has it as `epoch_<name>`, as Keras names its own.
          staleness: float64 [n], pushes by the number of updates that they missed; a histogram.
          lines: what was lost and came back, in words; a text.
        """
        if self._folders and not self._writers:
            self._writers = [_opened(folder) for folder in self._folders]
        summary = tf.compat.v1.Summary()
        for name, value in stats.items():
            summary.value.add(tag=f"epoch_{name}", simple_value=value)
        summary.value.add(tag="staleness", histo=_histogram(staleness))
        if lines:
            summary.value.add(tag="losses", tensor=_text(lines), metadata=_TEXT)
        event = tf.compat.v1.Event(wall_time=time.time(), step=epoch, summary=summary)
        for writer in self._writers:
            writer.write(event.SerializeToString())
            writer.flush()

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers:
            writer.close()
        self._writers = []


def _opened(folder: str) -> tf.io.TFRecordWriter:
    """A new file of events, whose name TensorBoard knows by `tfevents`."""
    tf.io.gfile.makedirs(folder)
    host, process = socket.gethostname(), os.getpid()
    name = f"tfps.tfevents.{int(time.time())}.{host}.{process}.{next(_numbers)}"
    writer = tf.io.TFRecordWriter(os.path.join(folder, name))
    version = tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2")
    writer.write(version.SerializeToString())
    return writer


def _text(lines: Sequence[str]) -> Any:
    return tf.make_tensor_proto([line.encode() for line in lines], tf.string)


def _histogram(counts: np.ndarray) -> tf.compat.v1.HistogramProto:
    """Returns a histogram with a bin for each number that was counted."""
    numbers = np.arange(len(counts))
    total, found = counts.sum(), np.flatnonzero(counts)
    return tf.compat.v1.HistogramProto(
        min=float(found[0]) if total else 0.0,
        max=float(found[-1]) if total else 0.0,
        num=total,
        sum=float(counts @ numbers),
        sum_squares=float(counts @ numbers**2),
        bucket_limit=(numbers + 0.5).tolist(),
        bucket=counts.tolist(),
    )
