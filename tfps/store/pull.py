"""What a step reads from the servers.

Every method takes the resource handles as arguments, never as captures: a step that was traced once
goes on after a variable was replaced.
"""

import copy
from typing import NamedTuple

import keras
import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.compression import Codec
from tfps.model import optimizer_traits
from tfps.model.lookups import Rows
from tfps.model.optimizer_set import AnyOptimizer
from tfps.store import row_messages, views
from tfps.store.buckets import unpack
from tfps.store.channel import Channel
from tfps.store.handles import ServerHandles
from tfps.store.messages import coalesce
from tfps.store.parameter_store import ParameterStore
from tfps.store.resources import read, write
from tfps.store.tables import Found, Ids
from tfps.store.views import Views

# What a worker holds of buckets that are pulled as differences: bucket -> its values.
Copies = dict[int, tf.Tensor]

# (ps, what was read there): in the graph of a step, what a push is not to overtake.
Reads = list[tuple[int, tf.Tensor]]


class Pulled(NamedTuple):
    """What a pull brings to a worker.

    Attributes:
      payloads: bucket -> what its codec sent. A table's buckets are missing unless tables are
        pulled whole. Of a bucket that is pulled as differences, it is the worker's copy after the
        pull.
      versions: int64 [ps], the number of updates that each ps had made.
      beyond: a float64 scalar, by how many bytes the pull was longer than the codecs predict, where
        there are differences; else empty.
    """

    payloads: dict[int, tuple]
    versions: tf.Tensor
    beyond: list[tf.Tensor] = []  # noqa: RUF012 - Nobody changes it.


class Puller:
    """Brings parameters from a store to a worker, inside of `tf.function`s.

    Attributes:
      store: with the variables.
      tables: indices of the variables of which only rows travel.
      views: what the servers know of the workers' copies, for buckets pulled as differences.
    """

    def __init__(self, store: ParameterStore, optimizer: AnyOptimizer | None):
        """Notes what to read.

        Args:
          store: with the variables.
          optimizer: what the model was compiled with, or several, or None.
        """
        self.store = store
        self.tables = list(store.plan.tables)
        self.views = Views(store.plan)
        self._plan = store.plan
        self._optimizer = optimizer
        self._tracks = bool(self.views.buckets)
        self._static_scale = optimizer_traits.static_loss_scale(optimizer) if optimizer else 1.0

    def pull(
        self,
        handles: ServerHandles,
        exact: bool = False,
        whole: bool = False,
        reads: Reads | None = None,
        copies: Copies | None = None,
    ) -> Pulled:
        """Reads every bucket on its ps and sends it to the caller's device.

        Args:
          handles: of this store, with a sender if there are copies.
          exact: whether the values are sent as they are, whatever the codecs.
          whole: whether tables are pulled too, all of their rows.
          reads: takes note of what is read.
          copies: what the worker holds of buckets that are pulled as differences; of `copies`, or
            of `no_copies` before the first pull. Without them these buckets are sent as they are,
            and nothing is noted.
        """
        payloads = {}
        versions, beyond = [], []
        for p in range(self._plan.num_ps):
            mine = [
                i
                for i, b in enumerate(self._plan.buckets)
                if b.ps == p and (whole or i not in self._plan.of_tables)
            ]
            with tf.device(ps_device(p)):
                values = {
                    i: read(handles.store.values[i], bucket.dtype, bucket.shape)
                    for i, bucket in enumerate(self._plan.buckets)
                    if i in mine
                }
                sent = {}
                tracked = self._tracked(mine) if copies and not exact else []
                for i, value in values.items():
                    if any(i in channels for channels in tracked):
                        continue
                    channel = self._channel(i, exact)
                    # No codec for weights draws random numbers: it rounds to the nearest.
                    sent[i], _ = channel.encode(
                        value, channel.initial_state(), tf.zeros([2], "int32")
                    )
                version = read(handles.store.versions[p], tf.int64, ())
                if reads is not None:
                    reads += [(p, t) for t in (*values.values(), version)]
                differences = self._send(handles, p, tracked, values, version)
                told = [version, *(one.whole for one in differences)]
                messages, restore = coalesce([*tf.nest.flatten(sent), *told])
            back = restore(messages)
            flat, (version, *wholes) = back[: -len(told)], back[-len(told) :]
            versions.append(version)
            payloads.update(tf.nest.pack_sequence_as(sent, flat))
            for channels, one, is_whole in zip(tracked, differences, wholes, strict=True):
                after, more = views.receive(channels, one, is_whole, copies or {})
                payloads.update({i: ((value,),) for i, value in after.items()})
                beyond.append(more)
        return Pulled(payloads, tf.stack(versions), [tf.add_n(beyond)] if beyond else [])

    def _tracked(self, buckets: list[int]) -> list[dict[int, Channel]]:
        """Those of the buckets that are pulled as differences, by codec: bucket -> its channel."""
        by_codec: dict[Codec, dict[int, Channel]] = {}
        for i in buckets:
            if i in self.views.buckets:
                channel = self._plan.down[i]
                by_codec.setdefault(channel.codec, {})[i] = channel
        return list(by_codec.values())

    def _send(self, handles, p, tracked, values, version) -> list[views.Sent]:
        """What a ps sends of buckets that are pulled as differences; on its device."""
        if not tracked:
            return []
        count = read(handles.sender.views.counts[p], tf.int64, ())
        sent, sound = [], []
        for channels in tracked:
            mine = {i: values[i] for i in channels}
            one, finite = views.send(channels, mine, handles.sender.views, count, version)
            sent.append(one)
            sound.append(finite)
        # A view that is not finite would never become so again.
        after = tf.where(tf.reduce_all(tf.stack(sound)), count + 1, 0)
        write([handles.sender.views.counts[p]], [after])
        return sent

    def _channel(self, i: int, exact: bool) -> Channel:
        # Of what is pulled as differences, values arrive, by whatever way.
        exact = exact or i in self.views.buckets
        return self._plan.exact(i) if exact else self._plan.down[i]

    def recode(self) -> None:
        """Goes by the plan's codecs anew, in what is traced from now on."""
        self.views = Views(self.store.plan)
        self._tracks = bool(self.views.buckets)

    def without_views(self) -> "Puller":
        """A puller that brings whole what this one brings as differences, and notes nothing."""
        other = copy.copy(self)
        other._tracks = False
        return other

    def copy_specs(self, whole: bool = False) -> Copies:
        """The form of what a worker holds from one pull to the next.

        Args:
          whole: whether tables are pulled whole.
        """
        return self.views.copy_specs(whole) if self._tracks else {}

    def begin(self, handles: ServerHandles, whole: bool = False) -> Copies:
        """Makes the next pull of a worker a whole one.

        Args:
          handles: with the worker as sender.
          whole: whether tables are pulled whole.

        Returns:
          Its copies until then, zeros on the caller's device.
        """
        if not self._tracks:
            return {}
        assert handles.sender is not None
        self.views.clear(handles.sender.views)
        return {i: tf.zeros(s.shape, s.dtype) for i, s in self.copy_specs(whole).items()}

    def copies(self, pulled: Pulled) -> Copies:
        """What the worker holds after a pull."""
        return {i: pulled.payloads[i][0][0] for i in self.copy_specs(True) if i in pulled.payloads}

    def payload_bytes(self, whole: bool = False) -> int:
        """Bytes that a pull brings, as the codecs predict; rows of tables are not counted.

        See also `Pulled.beyond`.
        """
        mine = [i for i in range(len(self._plan.buckets)) if whole or i not in self._plan.of_tables]
        return sum(self._plan.down[i].payload_bytes for i in mine)

    def rows(
        self,
        handles: ServerHandles,
        lookups: dict[int, list[tf.Tensor]],
        seed: tf.Tensor,
        exact: bool = False,
    ) -> dict[int, Found]:
        """Reads the rows that a batch looks up.

        Args:
          handles: of this store.
          lookups: table -> the ids of each of its lookups; see `row_ids`.
          seed: int32 [2], for the codecs.
          exact: whether the rows are sent as they are, whatever the codecs.

        Returns:
          Table -> what was found.
        """
        ids = {i: Ids.of(lookup) for i, lookup in lookups.items()}
        return row_messages.pull(self._plan.tables, ids, handles, seed, exact)

    def has(self, found: dict[int, Found]) -> tf.Tensor:
        """bool scalar: whether all rows that were asked for exist."""
        exist = [self._plan.tables[i].has(one.ids) for i, one in found.items()]
        return tf.reduce_all(tf.stack([True, *exist]))

    def loss_scale(self, handles: ServerHandles) -> tf.Tensor:
        """float32 scalar by which workers multiply the loss."""
        dynamic = handles.store.loss_scale
        if dynamic is None:
            return tf.constant(self._static_scale)
        with tf.device(ps_device(0)):
            return read(dynamic.scale, tf.float32, ())

    def count(self, handles: ServerHandles, count: keras.Variable) -> tf.Tensor:
        """How many updates an optimizer has applied, an integer scalar of the variable's dtype.

        The servers apply every update together, so one server tells.

        Args:
          handles: of this store.
          count: the `iterations` of one of the model's optimizers. If no training step
            applies that optimizer, the step has the value from when it was traced.
        """
        k = None
        if self._optimizer is not None:
            k = optimizer_traits.counted(self._optimizer, count)
        if k is None:
            with tf.init_scope():
                value = count.numpy()
            return tf.constant(value)
        held = handles.store
        placed = [(p, o, held.slots[p]) for p, o in self.store.optimizers.items()]
        placed += [
            (self._plan.buckets[i].ps, o, held.row_slots[i])
            for i, o in self.store.row_optimizers.items()
        ]
        for p, optimizer, state in placed:
            handle = optimizer.count_of(k, state)
            if handle is not None:
                with tf.device(ps_device(p)):
                    found = read(handle, optimizer.iterations.dtype, ())
                return tf.cast(found, count.dtype)
        return tf.zeros([], count.dtype)

    def unpack(
        self, pulled: Pulled, rows: dict[int, Rows], exact: bool = False
    ) -> list[tf.Tensor | Rows]:
        """The model's variables in the order of the plan: a tensor each, and `Rows` of a table.

        Args:
          pulled: of `pull`.
          rows: table -> what `rows` found for the model.
          exact: whether `pulled` was pulled exactly.
        """
        values = self.decode(pulled, exact)
        whole = self.variables(values)
        return [rows[i] if i in rows else whole[i] for i in range(len(self._plan.specs))]

    def decode(self, pulled: Pulled, exact: bool = False) -> dict[int, tf.Tensor]:
        """Bucket -> its values, for the buckets that were pulled."""
        return {i: self._channel(i, exact).decode(one) for i, one in pulled.payloads.items()}

    def variables(self, values: dict[int, tf.Tensor]) -> dict[int, tf.Tensor]:
        """Variable -> its tensor, for the variables that lie in these buckets."""
        buckets = [self._plan.buckets[i] for i in values]
        return unpack(buckets, list(values.values()), self._plan.specs)
