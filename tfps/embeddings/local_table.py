"""A table in the process of the model: what a layer without servers looks rows up in."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfps import errors
from tfps.embeddings import exports
from tfps.embeddings.handles import COUNT, KEY, LAST, REF
from tfps.embeddings.hash_table import HashTable
from tfps.embeddings.index import slots_of
from tfps.embeddings.part import TablePart
from tfps.embeddings.settings import TableSettings

# A table whose rows have at most so many bytes is whole in the process of the model.
LOCAL_BYTES = 64 << 20

# Bytes of the rows of any other table in the process of the model. Its slots, its keys and their
# index take twice as much again, and the chief of a large job has other things to hold.
PART_BYTES = 16 << 20


class Keys(NamedTuple):
    """The keys of a table in the order of their rows.

    Attributes:
      keys: int64 [n].
      slots: int64 [n], row numbers.
      counts: int64 [n], how many updates named each key.
      lasts: int64 [n], the number of the last one.
    """

    keys: np.ndarray
    slots: np.ndarray
    counts: np.ndarray
    lasts: np.ndarray


class Held(NamedTuple):
    """The keys of rows that somebody was given.

    Attributes:
      keys: all of them.
      clock: see `LocalTable`.
      elsewhere: how many rows more the servers had.
    """

    keys: Keys
    clock: int
    elsewhere: int


NOTHING = Held(Keys(*[np.zeros([0], np.int64)] * 4), 0, 0)


def rows_here(settings: TableSettings) -> int:
    """How many rows a table has in the process of the model."""
    row_bytes, rows = 4 * settings.width, settings.capacity or settings.expected
    if rows * row_bytes <= LOCAL_BYTES:
        return rows
    return max(1, min(LOCAL_BYTES, PART_BYTES) // row_bytes)


class LocalTable(tf.Module):
    """The keys of a Keras variable's rows.

    Attributes:
      replaced: how often somebody has replaced all keys by others, as a file that is loaded does.
        Each table on servers compares it with what it has seen.
      elsewhere: how many rows the servers have that are not here, as far as is known.
    """

    def __init__(self, settings: TableSettings, embeddings: keras.Variable):
        """Makes a table without keys.

        Args:
          settings: of the layer.
          embeddings: float32 [rows, width].
        """
        super().__init__()
        rows = int(embeddings.shape[0])
        here = settings._replace(expected=rows, capacity=rows, row_dtype="float32")
        with tf.init_scope(), tf.device("CPU:0"):
            self._part = TablePart(HashTable(here), embeddings.value)
            self._clock = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._table, self._rows = self._part.table, rows
        self.replaced = self.elsewhere = self._moves = 0
        self._given: tuple[int, ...] | None = None  # the generation of the rows that were given

    def read(self, keys: tf.Tensor) -> tf.Tensor:
        """float32 [n, width]: rows of keys; nothing is let in."""
        return self._table.read(self._part.handles, keys, self._clock.read_value())

    def trained(self, embeddings: tf.Variable, keys: tf.Tensor) -> tf.Tensor:
        """`read` in a step of training: keys are let in, and gradients reach their rows.

        Args:
          embeddings: the variable with the rows.
          keys: int64 [n].
        """
        handles, table = self._part.handles, self._table
        unique, positions = tf.unique(keys)
        now, again = self._step(unique)
        where, taken = table.insert(handles, unique, now, again=again)
        first = table.gather(handles, where)
        written = table.update(handles, where, first, now)
        with tf.control_dependencies([one for one in written if one is not None]):
            done = table.commit(handles, where, now)
        with tf.control_dependencies(done):
            rows = tf.gather(embeddings, where.slots)
        initial = table.settings.initial.rows(unique, table.settings.width)
        rows = tf.tensor_scatter_nd_update(initial, taken[:, None], rows)
        return tf.gather(rows, positions)

    def _step(self, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """The number of a step, and bool [n], which keys it has named before; None for none.

        A layer may be called several times in a step. In a graph it is known that the calls are of
        one step; outside of graphs, each is a step of its own.

        Args:
          keys: int64 [n].
        """
        if tf.executing_eagerly():
            return self._clock.assign_add(1, read_value=True), None
        # A graph keeps the collection, and graphs within it, as of loops, have it too.
        calls = tf.compat.v1.get_default_graph().get_collection_ref(f"{__name__}.{id(self)}")
        if not calls:
            calls.append((self._clock.assign_add(1, read_value=True), keys))
            return calls[0][0], None
        now, before = calls[-1]
        ordered = tf.sort(before)
        at = tf.minimum(tf.searchsorted(ordered, keys), tf.maximum(tf.size(ordered) - 1, 0))
        there = tf.cond(
            tf.size(ordered) > 0,
            lambda: tf.equal(tf.gather(ordered, at), keys),
            lambda: tf.zeros_like(keys, tf.bool),
        )
        calls.append((now, tf.concat([before, tf.boolean_mask(keys, ~there)], 0)))
        return now, there

    @property
    def clock(self) -> int:
        """How many steps of training there were."""
        return int(self._clock.numpy())

    def keys(self) -> Keys:
        """All keys."""
        meta, _ = exports.export(self._table, self._part.handles, [])
        meta = meta.numpy()
        slots = slots_of(tf.constant(meta[:, REF])).numpy()
        return Keys(meta[:, KEY], slots, meta[:, COUNT], meta[:, LAST])

    def take(self, given: Keys, clock: int, numbered: bool = False) -> Keys:
        """Replaces all keys by others, or by those that were named most; the rows stay as they are.

        A key that is here already keeps the number of its row, so what an optimizer has for that
        row goes on to be the key's.

        Args:
          given: the keys, none of them twice. The numbers of their rows are wishes; -1 for none.
          clock: see the attribute.
          numbered: whether the numbers are kept where they can be, because the state of the
            optimizer comes in their order.

        Returns:
          The keys that it has now, ascending.
        """
        if len(given.keys) > self._rows:
            most = np.argsort(-given.counts, kind="stable")[: self._rows]
            given = Keys(*(one[most] for one in given))
        order = np.argsort(given.keys)
        given = Keys(*(one[order] for one in given))
        slots: np.ndarray = np.full(len(order), -1, np.int64)
        if not numbered:
            before = self.keys()
            # NumPy would look for repeated keys for most of the time.
            _, new, old = np.intersect1d(
                given.keys, before.keys, assume_unique=True, return_indices=True
            )
            slots[new] = before.slots[old]
        is_free: np.ndarray = np.ones(self._rows, bool)
        is_free[slots[slots >= 0]] = False
        can = (slots < 0) & (given.slots >= 0) & (given.slots < self._rows)
        can[can] = is_free[given.slots[can]]
        slots[can] = given.slots[can]
        is_free[slots[can]] = False
        lacking = slots < 0
        slots[lacking] = np.flatnonzero(is_free)[: np.count_nonzero(lacking)]
        taken = given._replace(slots=slots)
        self._moves += 1
        self._clock.assign(clock)
        self._part.replace(*taken)
        return taken

    def given(self) -> Held:
        """The keys of now, for somebody who is given the rows."""
        self._given = self._generation()
        return Held(self.keys(), self.clock, self.elsewhere)

    def rows_of(self, rows: np.ndarray, held: Held | None, is_plain: bool, name: str) -> np.ndarray:
        """Takes the keys of rows that somebody assigns; returns all rows of this process.

        Args:
          rows: float32 [rows, width].
          held: their keys.
          is_plain: whether nobody has promised that the rows have keys.
          name: of the variable.

        Raises:
          ConfigError: it cannot be told whose rows these are, or they are a part of the servers'.
        """
        remedy = (
            "use snapshots=, trainer.state.export() and restore(), or save_weights and load_weights"
        )
        if held is None:
            if is_plain and self._given == self._generation():
                return rows
            raise errors.ConfigError(
                f"the rows that are assigned to {name} do not tell whose they are, and ids have "
                f"come or gone since get_weights; assign what get_weights returned, or {remedy}"
            )
        if held.elsewhere and self.elsewhere:
            raise errors.ConfigError(
                f"{name} is to get {len(held.keys.keys)} rows that get_weights returned, but the "
                f"servers had {held.elsewhere} more, which the chief has no room for; {remedy}"
            )
        taken = self.take(held.keys, held.clock)
        self.replaced += 1
        return dealt(held.keys.keys, rows[held.keys.slots], taken, self._rows)

    def _generation(self) -> tuple[int, ...]:
        """Another one whenever a key has got a row, or lost it."""
        marks = self._part.marks
        return marks["stamp"], marks["evicted"], marks["expired"], self._moves


def dealt(keys: np.ndarray, rows: np.ndarray, taken: Keys, room: int) -> np.ndarray:
    """float32 [room, width]: rows at the places that their keys have; zeros elsewhere.

    Args:
      keys: int64 [n].
      rows: float32 [n, width].
      taken: of `LocalTable.take`.
      room: how many rows there are.
    """
    array: np.ndarray = np.zeros([room, rows.shape[1]], np.float32)
    _, given, place = np.intersect1d(keys, taken.keys, assume_unique=True, return_indices=True)
    array[taken.slots[place]] = rows[given]
    return array
