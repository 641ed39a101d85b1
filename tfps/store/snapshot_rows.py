"""The rows of large tables in snapshots: written in pieces, and only those that have changed.

A piece of a part is a file of its own, named after the part. A snapshot may leave out rows that
have not changed since the one before, and then names the files of that one as well. So the rows of
a part are in a chain of files: all of them in the first snapshot of the chain, and those that
changed in each later one.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfps import _tf_resources, errors
from tfps.cluster.devices import ps_device
from tfps.embeddings.handles import KEY, META_WIDTH
from tfps.embeddings.keys import REMOVED
from tfps.store.parameter_store import ParameterStore
from tfps.store.row_pieces import Chunk, RowPieces
from tfps.store.snapshot_calls import (
    all_at_once,
    checked,
    file_errors,
    reader_of,
    restored,
    save,
)
from tfps.store.snapshot_folder import Id
from tfps.store.snapshot_form import Form, RowFiles, suffix_of
from tfps.store.snapshot_parts import columns_of
from tfps.store.snapshot_places import Place

# A chain is no longer than this, and has at most as many later rows as the first snapshot, times
# the share: more would cost more to read, and to keep, than it saves in writing.
_LONGEST, _SHARE = 20, 0.5


class _Saved(NamedTuple):
    """What the newest complete snapshot has of a part.

    Attributes:
      cut: number of its cut.
      renewals: of the part then.
      files: its files.
      first, later: rows in the first snapshot of the chain, and in the later ones.
      sizes: what the manifest says of the files.
    """

    cut: int
    renewals: int
    files: RowFiles
    first: int
    later: int
    sizes: Mapping[str, tuple[int, str]]


class RowsCut(NamedTuple):
    """A part at a cut that has begun.

    Attributes:
      pieces: of the part.
      names: of its columns.
      cut: number of the cut.
      limit: how many rows there were.
      renewals: of the part at the cut.
      before: what the snapshot before has; None if all rows are to be written.
    """

    pieces: RowPieces
    names: list[str]
    cut: int
    limit: int
    renewals: int
    before: _Saved | None


class WrittenRows(NamedTuple):
    """A part whose rows are written.

    Attributes:
      of: the part at its cut.
      num_files: how many files were written.
      saved: what the snapshot has if it becomes complete.
    """

    of: RowsCut
    num_files: int
    saved: _Saved

    @property
    def parts(self) -> list[str]:
        """The names of the files that were written, as `Folder.commit` takes them."""
        pieces = self.of.pieces
        return [f"ps-{pieces.ps}{suffix_of(pieces.bucket, k)}" for k in range(self.num_files)]

    @property
    def earlier(self) -> Mapping[str, tuple[int, str]]:
        """The files of earlier snapshots that belong to this one; see `Manifest.files`."""
        return self.of.before.sizes if self.of.before else {}


def begin(store: ParameterStore, chains: "Chains | None") -> list[RowsCut]:
    """Begins a cut on the servers; no worker may push meanwhile.

    Args:
      store: with the tables.
      chains: what earlier snapshots have; None if all rows are to be written.
    """
    large = store.large
    large.cut += 1
    return [
        RowsCut(
            pieces,
            columns_of(store, bucket),
            large.cut,
            pieces.begin(large.cut),
            pieces.renewals,
            chains.before(pieces) if chains else None,
        )
        for bucket, pieces in large.pieces.items()
    ]


def write(place: Place, id: Id, cuts: Sequence[RowsCut]) -> list[WrittenRows]:
    """Lets each ps write the rows as they were at the cut; updates go on meanwhile.

    Raises:
      SnapshotFailed: a ps could not write.
      tf.errors.OpError: a ps could not be asked.
    """
    servers = sorted({one.pieces.ps for one in cuts})

    def write_on(ps: int) -> list[WrittenRows]:
        with file_errors(f"ps {ps}", errors.SnapshotFailed):
            place.prepare(ps)
            return [_write(place, id, one) for one in cuts if one.pieces.ps == ps]

    with all_at_once(len(servers)) as run:
        return [one for found in run(write_on, servers) for one in found]


def _write(place: Place, id: Id, cut: RowsCut) -> WrittenRows:
    pieces, before = cut.pieces, cut.before
    count = written = 0
    try:
        since = before.cut if before else 0
        for chunk in pieces.chunks(cut.cut, cut.limit, since):
            prefix = place.prefix(pieces.ps) + suffix_of(pieces.bucket, count)
            _save(prefix, pieces.ps, cut.names, chunk)
            count, written = count + 1, written + chunk.rows.shape[0]
    finally:
        pieces.end(cut.cut)
    link = [id.incarnation, id.number, count]
    chain = [*(before.files.chain if before else []), link]
    files = RowFiles(cut.names, cut.limit, chain)
    first, later = (before.first, before.later + written) if before else (written, 0)
    return WrittenRows(cut, count, _Saved(cut.cut, cut.renewals, files, first, later, {}))


def _save(prefix: str, ps: int, names: Sequence[str], chunk: Chunk) -> None:
    with tf.device(ps_device(ps)):
        # The numbers of rows that follow one another need not be written.
        is_whole = chunk.rows.shape[0] == chunk.end - chunk.begin
        rows = tf.zeros([0], tf.int64) if is_whole else chunk.rows
        span = tf.constant([chunk.begin, chunk.end], tf.int64)
        save(prefix, ["span", "rows", *names], [span, rows, *chunk.contents])


class Chains:
    """What the newest complete snapshot has of each part, in this process."""

    def __init__(self) -> None:
        """Knows of no snapshot."""
        self._saved: weakref.WeakKeyDictionary[RowPieces, _Saved] = weakref.WeakKeyDictionary()
        self._id = Id(0, 0)

    def before(self, pieces: RowPieces) -> _Saved | None:
        """What a snapshot may build on; None if it has to have all rows."""
        saved = self._saved.get(pieces)
        if saved is None or saved.renewals != pieces.renewals:
            return None
        too_long = len(saved.files.chain) >= _LONGEST or saved.later > _SHARE * saved.first
        return None if too_long else saved

    def complete(
        self, id: Id, written: Sequence[WrittenRows], files: Mapping[str, tuple[int, str]]
    ) -> None:
        """Notes a snapshot that is complete.

        Args:
          id: which snapshot.
          written: its large tables.
          files: of its manifest.
        """
        if id < self._id:
            return  # It took so long that another one was written meanwhile.
        self._id = id
        for one in written:
            prefixes = _prefixes(one)
            sizes = {n: size for n, size in files.items() if n.rpartition(".")[0] in prefixes}
            self._saved[one.of.pieces] = one.saved._replace(sizes=sizes)


def _prefixes(written: WrittenRows) -> set[str]:
    """The names of all checkpoints that have rows of a part."""
    pieces = written.of.pieces
    return {
        f"{Id(incarnation, number)}.ps-{pieces.ps}{suffix_of(pieces.bucket, k)}"
        for incarnation, number, count in written.saved.files.chain
        for k in range(count)
    }


def form_of(written: Sequence[WrittenRows]) -> dict[str, Any]:
    """`Form.rows` of what was written."""
    return {str(one.of.pieces.bucket): list(one.saved.files) for one in written}


class SavedRows:
    """Reads the rows of large tables from the files of a snapshot."""

    def __init__(self, place: Place, form: Form):
        """Reads nothing yet.

        Args:
          place: of the parts.
          form: what the manifest says of them.
        """
        self._place = place
        self._ps = {int(i): form.buckets[int(i)][0] for i in form.rows}
        self._files = {int(i): RowFiles(*files) for i, files in form.rows.items()}
        growing = {bucket for _, buckets, _ in form.growing for bucket in buckets}
        self._dense = [i for i in self._files if i not in growing]
        self._bucket_of = {n: i for i in self._dense for n in self._files[i].names}
        self._widths = {i: form.buckets[i][2][1] for i in self._files if i in growing}

    def has(self, bucket: int) -> bool:
        """Whether the rows of a part are in files of their own."""
        return bucket in self._files

    def has_column(self, name: str) -> bool:
        """Whether what is written under a name is a column of a dense table in such files."""
        return name in self._bucket_of

    def dense_on(self, ps: int) -> list[int]:
        """The buckets of dense tables in such files, of one ps."""
        return [i for i in self._dense if self._ps[i] == ps]

    def _prefixes(self, bucket: int, where: Any) -> list[tuple[bool, str]]:
        """(whether it has rows that were written before, prefix) of each file, in order."""
        found = []
        for k, (incarnation, number, count) in enumerate(self._files[bucket].chain):
            place = self._place.of(Id(incarnation, number))
            prefix = where(place)(self._ps[bucket])
            found += [(k > 0, prefix + suffix_of(bucket, j)) for j in range(count)]
        return found

    # On the chief.

    def column_on_chief(self, name: str) -> np.ndarray:
        """A column of a dense table.

        Raises:
          SnapshotDamaged: a file cannot be read.
        """
        bucket = self._bucket_of[name]
        whole = None
        seen: np.ndarray = np.zeros(self._files[bucket].limit, bool)
        for rows, column in self._read(bucket, [name]):
            array = column[name]
            if whole is None:
                whole = np.empty([len(seen), *array.shape[1:]], array.dtype)
            whole[rows], seen[rows] = array, True
        if whole is None or not seen.all():
            raise errors.SnapshotDamaged(f"ps {self._ps[bucket]}: rows of {name} are missing")
        return whole

    def keys_on_chief(self, bucket: int) -> list[np.ndarray]:
        """[what is noted of keys, rows, slots] of a part of a table that grows.

        Raises:
          SnapshotDamaged: a file cannot be read.
        """
        files = self._files[bucket]
        meta: np.ndarray = np.zeros([files.limit, META_WIDTH], np.int64)
        meta[:, KEY] = REMOVED
        width = self._widths[bucket]
        columns = [meta, *(np.zeros([files.limit, width], np.float32) for _ in files.names[1:])]
        for rows, found in self._read(bucket, files.names):
            for column, name in zip(columns, files.names, strict=True):
                column[rows] = found[name]
        owned = meta[:, KEY] != REMOVED
        return [column[owned] for column in columns]

    def _read(
        self, bucket: int, names: Sequence[str]
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """(row numbers, their columns by name) of each file, in order."""
        for _, prefix in self._prefixes(bucket, lambda place: place.on_chief):
            get = checked(reader_of(prefix).get_tensor, f"ps {self._ps[bucket]}")
            columns = {name: get(name) for name in names}
            rows, (begin, end) = get("rows"), get("span")
            if len(rows) != len(columns[names[0]]):
                rows = np.arange(begin, end)
            yield rows, columns

    # On a ps.

    def columns_on_ps(self, bucket: int, dtypes: Mapping[str, tf.DType]) -> dict[str, tf.Tensor]:
        """The columns of a dense table by name, on their ps.

        Args:
          bucket: of the part.
          dtypes: of the columns.

        Raises:
          SnapshotDamaged: a file cannot be read.
        """
        files, found = self._files[bucket], {}
        chunks = self._read_on_ps(bucket, [dtypes[name] for name in files.names])
        with tf.device(ps_device(self._ps[bucket])):
            for k, name in enumerate(files.names):
                # Those that had all rows follow one another.
                whole = tf.concat([columns[k] for later, _, columns in chunks if not later], 0)
                if whole.shape[0] != files.limit:
                    ps = self._ps[bucket]
                    raise errors.SnapshotDamaged(f"ps {ps}: rows of {name} are missing")
                later = [(rows, columns[k]) for later, rows, columns in chunks if later]
                found[name] = _scattered(whole, later) if later else whole
        return found

    def keys_on_ps(self, bucket: int) -> list[list[tf.Tensor]]:
        """[what is noted of keys, rows, slots] of pieces of a table that grows, on their ps.

        Raises:
          SnapshotDamaged: a file cannot be read.
        """
        found = []
        rows = [tf.float32] * (len(self._files[bucket].names) - 1)
        chunks = self._read_on_ps(bucket, [tf.int64, *rows])
        with tf.device(ps_device(self._ps[bucket])):
            seen = tf.zeros([self._files[bucket].limit], tf.bool)
            for _, rows, columns in reversed(chunks):
                is_owned = tf.not_equal(columns[0][:, KEY], REMOVED)
                is_newest = tf.logical_not(tf.gather(seen, rows))
                kept = tf.where(tf.logical_and(is_owned, is_newest))[:, 0]
                found.append([tf.gather(column, kept) for column in columns])
                news = tf.ones_like(rows, tf.bool)
                seen = tf.tensor_scatter_nd_update(seen, rows[:, None], news)
        return found

    def _read_on_ps(
        self, bucket: int, dtypes: Sequence[tf.DType]
    ) -> list[tuple[bool, tf.Tensor, list[tf.Tensor]]]:
        """(whether it is of a later snapshot, row numbers, columns) of each file."""
        ps, names, found = self._ps[bucket], ["span", "rows", *self._files[bucket].names], []
        dtypes = [tf.int64, tf.int64, *dtypes]
        with tf.device(ps_device(ps)), file_errors(f"ps {ps}", errors.SnapshotDamaged):
            for later, prefix in self._prefixes(bucket, lambda place: place.on_ps):
                span, rows, *columns = restored(prefix, names, dtypes)
                if rows.shape[0] != columns[0].shape[0]:
                    rows = tf.range(span[0], span[1])
                found.append((later, rows, columns))
        return found


def _scattered(whole: tf.Tensor, later: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> tf.Tensor:
    """A tensor with some of its rows replaced by (row numbers, rows), in order."""
    variable = _tf_resources.without_value(whole.shape, whole.dtype)
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=whole)
    for rows, new in later:
        tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=rows, updates=new)
    return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=whole.dtype)
