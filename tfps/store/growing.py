"""A table that grows, as a whole: all of its parts on the servers, and the rows of the chief."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.embeddings import exports
from tfps.embeddings.exports import Chosen
from tfps.embeddings.handles import COUNT, KEY, LAST, TableHandles
from tfps.embeddings.hash_table import HashTable
from tfps.embeddings.layer import HashEmbedding
from tfps.embeddings.local_table import Keys, dealt
from tfps.embeddings.part import TablePart
from tfps.store.hash_rows import HashRows
from tfps.store.resources import locked
from tfps.store.row_pieces import RowPieces

# Keys that are written in one call.
_CHUNK = 1 << 16
# Row numbers that are read in one call.
_WINDOW = 1 << 17


class TableState(NamedTuple):
    """All keys of a table, in no order.

    Attributes:
      meta: int64 [n, 4]: key, reference (without a meaning), how many updates named it, the last.
      rows: name of a slot, or "" for the rows themselves -> float32 [n, width].
    """

    meta: np.ndarray
    rows: dict[str, np.ndarray]

    @classmethod
    def joined(cls, parts: Sequence["TableState"]) -> "TableState":
        """The keys of several parts."""
        names = parts[0].rows
        return cls(
            np.concatenate([part.meta for part in parts]),
            {name: np.concatenate([part.rows[name] for part in parts]) for name in names},
        )

    def unique(self) -> "TableState":
        """Every key once, as it was last: a key may have got another row while rows were read."""
        order = np.lexsort((-self.meta[:, LAST], self.meta[:, KEY]))
        keys = self.meta[order, KEY]
        is_first = np.diff(keys, prepend=~keys[:1]) != 0
        if is_first.all():
            return self
        kept = np.sort(order[is_first])
        return TableState(self.meta[kept], {name: rows[kept] for name, rows in self.rows.items()})


class GrowingTable:
    """Reads and writes the keys of one variable of the plan.

    Attributes:
      buckets: of the parts, by ps.
      names: name of a slot, or "" for the rows themselves -> the state of the optimizer, or None.
      layer: whose rows these are.
    """

    def __init__(
        self,
        storage: HashRows,
        parts: Mapping[int, TablePart],
        locks: Sequence[tf.Tensor],
        versions: Sequence[tf.Variable],
        slots: Mapping[str, int],
        layer: HashEmbedding,
        pieces: Mapping[int, RowPieces],
    ):
        """Notes where everything is.

        Args:
          storage: of the table.
          parts: bucket -> what is on its ps; whoever makes a part anew replaces it there.
          locks: per ps, the mutex under which pushes are applied.
          versions: per ps, how many updates there were.
          slots: name of a slot -> the state of the optimizer.
          layer: whose rows these are.
          pieces: bucket -> how it is copied while updates go on, where that is done.
        """
        self._pieces = pieces
        self.buckets = [part.bucket for part in storage.parts]
        self.names: dict[str, int | None] = {"": None, **slots}
        self._storage, self._parts, self._locks = storage, parts, locks
        self._versions, self.layer = versions, layer
        none: np.ndarray = np.zeros([0], np.int64)
        self._known = Keys(none, none, none, none)
        self._seen = layer.local.replaced
        self._functions: dict[tuple, Callable] = {}

    def marks(self) -> list[dict[str, int]]:
        """What each part counts, by ps; see `embeddings.handles.Marks`."""
        return [self._parts[bucket].marks for bucket in self.buckets]

    # On the servers.

    def read_part(self, bucket: int, names: Sequence[str]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """(int64 [n, 4], float32 [n, width] for each name), copies on the part's ps.

        Args:
          bucket: of the part.
          names: which rows.
        """
        states = [self.names[name] for name in names]

        def read(table, lock, handles):
            return locked(lock, lambda: exports.export(table, handles, states))

        return self._call(("read", *states), read, bucket)

    def put_part(
        self,
        bucket: int,
        keys: tf.Tensor,
        rows: Mapping[str, tf.Tensor],
        counts: tf.Tensor,
        lasts: tf.Tensor,
    ) -> None:
        """Writes keys to a part; see `HashTable.put`."""
        names = list(rows)
        states = [self.names[name] for name in names]

        def put(table, lock, handles, keys, given, counts, lasts, now):
            by_state = dict(zip(states, given, strict=True))
            locked(lock, lambda: table.put(handles, keys, by_state, counts, lasts, now))

        now = tf.constant(self._version(bucket), tf.int64)
        for begin in range(0, int(keys.shape[0]), _CHUNK):
            span = slice(begin, begin + _CHUNK)
            with tf.device(ps_device(self._ps(bucket))):
                given = [rows[name][span] for name in names]
                notes = keys[span], given, counts[span], lasts[span], now
            self._call(("put", *states), put, bucket, *notes)

    def clear(self, buckets: Sequence[int] | None = None) -> None:
        """Takes out all keys, and forgets which were seen.

        Args:
          buckets: of which parts; None for all.
        """
        for bucket in self.buckets if buckets is None else buckets:
            if bucket in self._pieces:
                self._pieces[bucket].keep_all()
            self._call(("clear",), _clear, bucket)

    def _keep_only(self, keys: np.ndarray) -> None:
        """Takes out all other keys; workers may push meanwhile. Slots stay what they are."""
        for bucket in self.buckets:
            for window in self._windows(bucket, []):
                gone = np.setdiff1d(window.meta[:, KEY], keys)
                if len(gone):
                    self._call(("remove",), _remove, bucket, tf.constant(gone))

    def export(self, names: Sequence[str] | None = None, most: int | None = None) -> TableState:
        """All keys, with these rows, on the chief; by default with all rows.

        Args:
          names: which rows; None for all.
          most: of each part only so many keys, those that updates named most often; None for all.
        """
        names = list(self.names) if names is None else names
        parts = [list(self._windows(bucket, names, most)) for bucket in self.buckets]
        state = TableState.joined([window for part in parts for window in part])
        return state.unique() if any(len(part) > 1 for part in parts) else state

    def living(self) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [n], keys in no order; float32 [n, width], rows), without what has expired."""
        expiry, found = self._storage.settings.expire_after, []
        for bucket in self.buckets:
            now = self._version(bucket)
            for meta, rows in self._windows(bucket, [""]):
                lives = slice(None) if expiry is None else now - meta[:, LAST] <= expiry
                found.append(TableState(meta[lives], {"": rows[""][lives]}))
        state = TableState.joined(found).unique()
        return state.meta[:, KEY], state.rows[""]

    def _windows(
        self, bucket: int, names: Sequence[str], most: int | None = None
    ) -> Iterator[TableState]:
        """A part's keys in pieces, so that its ps needs the memory of a piece, not of all rows.

        A key that is given another row meanwhile may be found twice, or not at all.

        Args:
          bucket, names: as for `read_part`.
          most: only so many keys, those that updates named most often; None for all.
        """
        used = self._parts[bucket].marks["used"]
        least, ties = -1, 0
        if most is not None and most < used:
            least, ties = self._threshold(bucket, used, most)
        for span in _spans(used):
            meta, rows = self._window(bucket, names, *span, least, ties)
            arrays = [np.asarray(one.numpy()) for one in rows]
            found = TableState(meta.numpy(), dict(zip(names, arrays, strict=True)))
            ties -= int(np.count_nonzero(found.meta[:, COUNT] == least))
            yield found

    def _window(
        self, bucket: int, names: Sequence[str], *notes: int
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """A span of a part, on its ps; `notes` are the span's ends and the numbers of `Chosen`."""
        states = [self.names[name] for name in names]

        def read(table, lock, handles, begin, end, least, ties):
            chosen = Chosen(least, ties)
            return locked(
                lock, lambda: exports.export(table, handles, states, (begin, end), chosen)
            )

        return self._call(("window", *states), read, bucket, *_numbers(*notes))

    def take_over(self, before: "GrowingTable") -> None:
        """Lets in the keys of the table that was here before, with their rows but without slots.

        Rows stay on their ps, and do not pass through the chief.
        """
        if len(self.buckets) != len(before.buckets):
            return self.put(before.export([""]))
        for old, new in zip(before.buckets, self.buckets, strict=True):
            # Here updates are counted anew, and ages stay what they are.
            later = self._version(new) - before._version(old)
            for span in _spans(before._parts[old].marks["used"]):
                meta, (rows,) = before._window(old, [""], *span, -1, 0)
                with tf.device(ps_device(self._ps(new))):
                    keys, counts, lasts = (meta[:, c] for c in (KEY, COUNT, LAST))
                    self.put_part(new, keys, {"": rows}, counts, lasts + later)
        return None

    def _version(self, bucket: int) -> int:
        """How many updates the part's ps has made."""
        return int(self._versions[self._ps(bucket)].numpy())

    def _threshold(self, bucket: int, used: int, most: int) -> tuple[int, int]:
        """The numbers of `Chosen` by which a part has just `most` keys."""

        def count(table, lock, handles, begin, end):
            return locked(lock, lambda: exports.counts(table, handles, (begin, end)))

        best = tf.zeros([0], tf.int64)
        for span in _spans(used):
            counts = self._call(("count",), count, bucket, *_numbers(*span))
            with tf.device(ps_device(self._ps(bucket))):
                best = tf.sort(tf.concat([best, counts], 0), direction="DESCENDING")[:most]
        with tf.device(ps_device(self._ps(bucket))):
            least = tf.reduce_min(best)
            return int(least), int(tf.math.count_nonzero(tf.equal(best, least)))

    def put(self, state: TableState) -> None:
        """Writes keys to the servers that they belong to."""
        part = self._part_of(state.meta[:, KEY])
        for k, bucket in enumerate(self.buckets):
            mine = part == k
            with tf.device(ps_device(self._ps(bucket))):
                meta = [tf.constant(state.meta[mine, c]) for c in (KEY, COUNT, LAST)]
                rows = {name: tf.constant(array[mine]) for name, array in state.rows.items()}
            self.put_part(bucket, meta[0], rows, meta[1], meta[2])

    # The chief's rows.

    def read(self, name: str) -> np.ndarray:
        """float32 [rows, width]: a slot, or the rows, of the keys that the chief has room for.

        The rows themselves bring new keys to the chief, and take away those that are no more.
        """
        if not name:
            state = self.export([name], self._room)
            self._follow(state.meta)
            return dealt(state.meta[:, KEY], state.rows[name], self._known, self._room)
        state_of, known, slots = self.names[name], self._known.keys, self._known.slots
        # Of a row without a key, the slot is what a new key is to begin with.
        array: np.ndarray = np.empty([self._room, self._storage.settings.width], np.float32)
        array[:] = self._storage.tables[0].slot_rows[state_of or 0]

        def read(table, lock, handles, keys):
            return locked(lock, lambda: table.gather(handles, table.find(handles, keys), state_of))

        part = self._part_of(known)
        for k, bucket in enumerate(self.buckets):
            keys = tf.constant(known[part == k])
            array[slots[part == k]] = self._call(("slots", state_of), read, bucket, keys).numpy()
        return array

    def _part_of(self, keys: np.ndarray) -> np.ndarray:
        """Which part has each key; see `HashRows.route`."""
        return (keys >> 33) % len(self.buckets)

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes a slot, or the rows, of the keys that the chief has.

        Args:
          name: of the slot, or "".
          array: float32 [rows, width].
        """
        local = self.layer.local
        keys = local.keys()
        if not name and self.is_replaced:
            self._seen = local.replaced
            self._keep_only(keys.keys)
        # The ages of the rows stay what they are, where the servers have counted otherwise.
        now = max(int(version.numpy()) for version in self._versions)
        lasts: np.ndarray = keys.lasts + (now - local.clock)
        meta = np.stack([keys.keys, keys.slots, keys.counts, lasts], 1)
        self.put(TableState(meta, {name: array[keys.slots]}))
        order = np.argsort(keys.keys)
        self._known = Keys(*(one[order] for one in keys))

    @property
    def is_replaced(self) -> bool:
        """Whether somebody has replaced the chief's keys since the servers have had them."""
        return self.layer.local.replaced != self._seen

    @property
    def _room(self) -> int:
        return int(self.layer.embeddings.shape[0])

    def _follow(self, meta: np.ndarray) -> None:
        now = max(int(version.numpy()) for version in self._versions)
        self._known = _take(self.layer, meta, now)
        local = self.layer.local
        self._seen = local.replaced
        local.elsewhere = sum(one["used"] - one["free"] for one in self.marks())
        local.elsewhere -= len(self._known.keys)

    # Calls.

    def _ps(self, bucket: int) -> int:
        return self._storage.parts[self._storage.part_of(bucket)].ps

    def _call(self, name: tuple, function: Callable, bucket: int, *args: Any) -> Any:
        """Calls a function of the part's table, lock and handles on its ps."""
        key, ps = (bucket, *name), self._ps(bucket)
        given = self._locks[ps], self._parts[bucket].handles, *args
        if key not in self._functions:
            table = self._storage.tables[self._storage.part_of(bucket)]
            traced = tf.function(functools.partial(function, table), autograph=False)
            # Of any number of keys.
            forms = tf.nest.map_structure(_of_any_length, args)
            self._functions[key] = traced.get_concrete_function(*given[:2], *forms)
        with tf.device(ps_device(ps)):
            return self._functions[key](*given)


def _spans(used: int) -> list[tuple[int, int]]:
    """Spans of row numbers, of `_WINDOW` each; at least one, which may be empty."""
    return [(begin, begin + _WINDOW) for begin in range(0, max(used, 1), _WINDOW)]


def _numbers(*numbers: int) -> list[tf.Tensor]:
    return [tf.constant(number, tf.int64) for number in numbers]


def _of_any_length(t: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *t.shape[1:]] if t.shape.rank else [], t.dtype)


def _clear(table: HashTable, lock: tf.Tensor, handles: TableHandles) -> None:
    locked(lock, lambda: table.clear(handles))


def _remove(table: HashTable, lock: tf.Tensor, handles: TableHandles, keys: tf.Tensor) -> None:
    locked(lock, lambda: table.remove(handles, keys))


def fill_layer(layer: HashEmbedding, state: TableState, now: int) -> dict[str, np.ndarray]:
    """Gives a layer keys with their rows; returns the slots, by name, of its variable's shape."""
    room, taken = int(layer.embeddings.shape[0]), _take(layer, state.meta, now)
    keys = state.meta[:, KEY]
    arrays = {name: dealt(keys, rows, taken, room) for name, rows in state.rows.items()}
    layer.embeddings.assign(tf.constant(arrays.pop("")))
    return arrays


def _take(layer: HashEmbedding, meta: np.ndarray, now: int) -> Keys:
    """Gives a layer the keys of servers, or as many as it has room for; see `LocalTable.take`."""
    wishes: np.ndarray = np.full(len(meta), -1, np.int64)
    keys = Keys(meta[:, KEY], wishes, meta[:, COUNT], meta[:, LAST])
    return layer.local.take(keys, now)


class GrowingColumn:
    """A `Source` of one slot of a table that grows, or of its rows; see `columns.Source`."""

    def __init__(self, table: GrowingTable, name: str):
        """Notes what it is a source of.

        Args:
          table: of the rows.
          name: of the slot, or "" for the rows.
        """
        self._table, self._name = table, name

    @property
    def is_replaced(self) -> bool:
        return not self._name and self._table.is_replaced

    def read(self, i: int) -> dict[int, np.ndarray]:
        return {i: self._table.read(self._name)}

    def write(self, values: Mapping[int, np.ndarray], busy: bool) -> None:
        del busy  # Every write takes the lock of pushes.
        for array in values.values():
            self._table.write(self._name, array)
