"""What a step reads from the servers.

Every method takes the resource handles as arguments, never as captures: a step that was traced once
goes on after a variable was replaced.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.model import optimizer_traits
from tfps.model.lookups import Rows
from tfps.model.optimizer_set import AnyOptimizer
from tfps.store import row_messages
from tfps.store.buckets import unpack
from tfps.store.handles import ServerHandles
from tfps.store.messages import coalesce
from tfps.store.parameter_store import ParameterStore
from tfps.store.resources import read
from tfps.store.tables import Found, Ids

# (ps, what was read there): in the graph of a step, what a push is not to overtake.
Reads = list[tuple[int, tf.Tensor]]


class Pulled(NamedTuple):
    """What a pull brings to a worker.

    Attributes:
      payloads: bucket -> what its codec sent. A table's buckets are missing unless tables are
        pulled whole.
      versions: int64 [ps], the number of updates that each ps had made.
    """

    payloads: dict[int, tuple]
    versions: tf.Tensor


class Puller:
    """Brings parameters from a store to a worker, inside of `tf.function`s.

    Attributes:
      store: with the variables.
      tables: indices of the variables of which only rows travel.
    """

    def __init__(self, store: ParameterStore, optimizer: AnyOptimizer | None):
        """Notes what to read.

        Args:
          store: with the variables.
          optimizer: what the model was compiled with, or several, or None.
        """
        self.store = store
        self.tables = list(store.plan.tables)
        self._plan = store.plan
        self._optimizer = optimizer
        self._static_scale = optimizer_traits.static_loss_scale(optimizer) if optimizer else 1.0

    def pull(
        self,
        handles: ServerHandles,
        exact: bool = False,
        whole: bool = False,
        reads: Reads | None = None,
    ) -> Pulled:
        """Reads every bucket on its ps and sends it to the caller's device.

        Args:
          handles: of this store.
          exact: whether the values are sent as they are, whatever the codecs.
          whole: whether tables are pulled too, all of their rows.
          reads: takes note of what is read.
        """
        payloads = {}
        versions = []
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
                for i, value in values.items():
                    channel = self._plan.exact(i) if exact else self._plan.down[i]
                    # No codec for weights draws random numbers: it rounds to the nearest.
                    sent[i], _ = channel.encode(
                        value, channel.initial_state(), tf.zeros([2], "int32")
                    )
                version = read(handles.store.versions[p], tf.int64, ())
                if reads is not None:
                    reads += [(p, t) for t in (*values.values(), version)]
                messages, restore = coalesce([*tf.nest.flatten(sent), version])
            *flat, version = restore(messages)
            versions.append(version)
            payloads.update(tf.nest.pack_sequence_as(sent, flat))
        return Pulled(payloads, tf.stack(versions))

    def payload_bytes(self, whole: bool = False) -> int:
        """Bytes that a pull brings, as the codecs predict; rows of tables are not counted."""
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
        channels = self._plan.down
        if exact:
            channels = [self._plan.exact(i) for i in range(len(self._plan.buckets))]
        return {i: channels[i].decode(payload) for i, payload in pulled.payloads.items()}

    def variables(self, values: dict[int, tf.Tensor]) -> dict[int, tf.Tensor]:
        """Variable -> its tensor, for the variables that lie in these buckets."""
        buckets = [self._plan.buckets[i] for i in values]
        return unpack(buckets, list(values.values()), self._plan.specs)
