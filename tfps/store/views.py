"""What a parameter server knows of the parameters that a worker holds, and differences from it.

With `pull=Difference(codec)`, a ps has a view for each worker: the values of its buckets as the
worker has them. A pull encodes the values minus the view. The ps adds what the payload says to the
view, and the worker adds the same to its copy, so that the two are equal bit by bit: both decode
the same payload with the same operations, and the sum is one operation that nothing is fused with.

A view belongs to one life of one worker (see `actors`). Calls of one life follow one another, and a
life ends with the first call that fails. So no pull is made twice against a view, and a pull that
comes late, of a worker that was frozen, moves a view that nobody looks at any more. An empty view
says that the worker holds nothing; the count of its pulls is 0, and the next one is whole.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.compression import Difference
from tfps.compression.kernels.compiling import compiled
from tfps.store.channel import Channel
from tfps.store.mailbox import HANDLE, ViewHandles
from tfps.store.messages import here, join, separate
from tfps.store.plan import Plan
from tfps.store.resources import read, write


class Views:
    """The views of one plan, as traced functions see them.

    Attributes:
      buckets: those that are pulled as differences.
      servers: the ps on which they are.
    """

    def __init__(self, plan: Plan):
        """Notes what to keep views of.

        Args:
          plan: with the codecs of what is pulled.
        """
        self._plan = plan
        self.buckets = [i for i, c in enumerate(plan.down) if isinstance(c.codec, Difference)]
        self.servers = sorted({plan.buckets[i].ps for i in self.buckets})

    def specs(self) -> ViewHandles:
        """The form of `ViewHandles`."""
        return ViewHandles(dict.fromkeys(self.buckets, HANDLE), dict.fromkeys(self.servers, HANDLE))

    def make(self, name: str) -> ViewHandles:
        """Makes the views of one life of one worker, which are empty.

        Args:
          name: that no other views of the chief have.
        """
        values, counts = {}, {}
        for i in self.buckets:
            bucket = self._plan.buckets[i]
            with tf.device(ps_device(bucket.ps)):
                values[i] = _variable(bucket.dtype, f"{name}_{i}")
        for p in self.servers:
            with tf.device(ps_device(p)):
                counts[p] = _variable("int64", f"{name}_count")
        handles = ViewHandles(values, counts)
        self.clear(handles)
        return handles

    def clear(self, handles: ViewHandles) -> None:
        """Empties views: what comes next is pulled whole.

        Args:
          handles: of `make`.
        """
        for p in self.servers:
            self.clear_on(p, handles)

    def clear_on(self, p: int, handles: ViewHandles) -> None:
        """See `clear`, for one ps."""
        mine = self._on(p)
        with tf.device(ps_device(p)):
            blanks = [tf.zeros([0], self._plan.buckets[i].dtype) for i in mine]
            write([handles.values[i] for i in mine], blanks)
            if p in handles.counts:
                write([handles.counts[p]], [tf.constant(0, tf.int64)])

    def delete_on(self, p: int, handles: ViewHandles) -> None:
        """Deletes the views on one ps."""
        mine = [handles.values[i] for i in self._on(p)]
        with tf.device(ps_device(p)):
            for handle in [*mine, *([handles.counts[p]] if p in handles.counts else [])]:
                tf.raw_ops.DestroyResourceOp(resource=handle, ignore_lookup_error=True)

    def _on(self, p: int) -> list[int]:
        return [i for i in self.buckets if self._plan.buckets[i].ps == p]

    def bytes_on(self, p: int, whole: bool = False) -> int:
        """Bytes of the views of one worker on a ps; see `copy_specs`."""
        held = [i for i in self._on(p) if i in self.copy_specs(whole)]
        return sum(self._plan.down[i].values_bytes for i in held)

    def copy_specs(self, whole: bool = False) -> dict[int, tf.TensorSpec]:
        """Bucket -> the form of a worker's copy of it.

        Args:
          whole: whether tables are pulled whole; otherwise there is no copy of them.
        """
        of_tables = () if whole else self._plan.of_tables
        held = {i: self._plan.buckets[i] for i in self.buckets if i not in of_tables}
        return {i: tf.TensorSpec(b.shape, b.dtype) for i, b in held.items()}


class Sent(NamedTuple):
    """What a ps sends of some buckets.

    Attributes:
      messages: tensors on the ps.
      specs: of the tensors that they consist of; see `messages.join`.
      forms: bucket -> (form of its values, flat; of its payload). One of the two is empty.
      whole: bool scalar on the ps, whether the payloads are. The worker is told, for TensorFlow
        2.21 may replace a size by what it would be if all branches ran.
    """

    messages: list[tf.Tensor]
    specs: list[tf.TensorSpec]
    forms: dict[int, tuple]
    whole: tf.Tensor


def send(
    channels: Mapping[int, Channel],
    values: Mapping[int, tf.Tensor],
    handles: ViewHandles,
    count: tf.Tensor,
    version: tf.Tensor,
) -> tuple[Sent, tf.Tensor]:
    """Encodes what changed since the last pull, and notes it. The caller enters the ps's device.

    Args:
      channels: bucket -> its channel; all with one codec, a `Difference`.
      values: bucket -> its values.
      handles: of the worker's views.
      count: int64 scalar, pulls since the views were empty.
      version: int64 scalar, the updates that the ps has made.

    Returns:
      (what is sent; bool scalar, whether the views are finite).
    """
    codec = next(iter(channels.values())).codec
    assert isinstance(codec, Difference)
    views = {i: read(handles.values[i], t.dtype, [None]) for i, t in values.items()}
    whole = tf.logical_or(tf.equal(count, 0), version < codec.whole_until)
    if codec.refresh is not None:
        whole = tf.logical_or(whole, tf.equal(count % codec.refresh, 0))
    forms: dict[int, tuple] = {}  # Found while the differences are traced.

    def differences():
        sent, moved = {}, []
        for i, value in values.items():
            view = tf.reshape(views[i], value.shape)
            seed = tf.stack([tf.cast(count % (1 << 31), tf.int32), 100 * i])
            channel = channels[i]
            payload, _ = channel.encode(value - view, channel.initial_state(), seed)
            sent[i] = (tf.zeros([0], value.dtype), payload)
            forms[i] = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), sent[i])
            moved.append(tf.reshape(view + decoded(channel, payload), [-1]))
        return tf.nest.flatten(sent), moved

    def wholes():
        flat = {i: tf.reshape(value, [-1]) for i, value in values.items()}
        sent = {i: (flat[i], tf.nest.map_structure(_none_of, forms[i][1])) for i in values}
        return tf.nest.flatten(sent), list(flat.values())

    parts, moved = tf.cond(tf.logical_not(whole), differences, wholes)
    write([handles.values[i] for i in values], moved)
    specs = [_any_like(t) for t in parts]
    sums = tf.stack([tf.reduce_sum(tf.cast(t, tf.float32)) for t in moved])
    return Sent(join(parts), specs, forms, whole), tf.reduce_all(tf.math.is_finite(sums))


def receive(
    channels: Mapping[int, Channel],
    sent: Sent,
    whole: tf.Tensor,
    copies: Mapping[int, tf.Tensor],
) -> tuple[dict[int, tf.Tensor], tf.Tensor]:
    """Takes in what a ps has sent. The caller enters the worker's device.

    Args:
      channels: bucket -> its channel.
      sent: of `send`.
      whole: of `sent`, on the worker.
      copies: bucket -> the worker's copy; anything before the first pull.

    Returns:
      (bucket -> the copy after the pull; float64 scalar, by how many bytes the pull was longer than
      the codec predicts, since it was whole).
    """
    parts = separate([tf.identity(m) for m in sent.messages], sent.specs)
    arrived = tf.nest.pack_sequence_as(sent.forms, parts)

    def taken():
        return [tf.reshape(arrived[i][0], channels[i].shape) for i in channels]

    def moved():
        shaped = tf.nest.map_structure(
            lambda t, form: tf.reshape(t, [-1 if n is None else n for n in form.shape]),
            {i: arrived[i][1] for i in channels},
            {i: sent.forms[i][1] for i in channels},
        )
        return [copies[i] + decoded(channels[i], shaped[i]) for i in channels]

    after = here(tf.cond(whole, taken, moved))
    for t, i in zip(after, channels, strict=True):
        t.set_shape(channels[i].shape)
    beyond = sum(c.values_bytes - c.payload_bytes for c in channels.values())
    return dict(zip(channels, after, strict=True)), tf.cast(whole, tf.float64) * float(beyond)


def decoded(channel: Channel, payload: tuple) -> tf.Tensor:
    """What a payload says, in the same operations on both sides."""
    flat = tf.nest.flatten(payload)

    def decode(*flat):
        return channel.decode(tf.nest.pack_sequence_as(payload, flat))

    return compiled(decode)(*flat) if channel.codec.jit else decode(*flat)


def _any_like(t: tf.Tensor) -> tf.TensorSpec:
    anything: list[int | None] = [None] * t.shape.rank
    return tf.TensorSpec(anything, t.dtype)


def _none_of(form: tf.TensorSpec) -> tf.Tensor:
    return tf.zeros([0, *form.shape[1:]] if form.shape.rank else [], form.dtype)


def _variable(dtype: str, name: str) -> tf.Tensor:
    return tf.raw_ops.VarHandleOp(dtype=tf.as_dtype(dtype), shape=None, shared_name=name)
