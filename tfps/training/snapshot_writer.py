"""Writes snapshots: the cut is taken in the thread that trains, and the files in another one."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster import failures, health
from tfps.store import (
    snapshot_parts as parts,
    snapshot_places as places,
    snapshot_rows as rows,
)
from tfps.store.snapshot_calls import save
from tfps.store.snapshot_folder import FILE_ERRORS, Folder, Id
from tfps.store.snapshot_form import suffix_of
from tfps.training.snapshot_record import Arrays

CHIEF = "chief"


def say(line: str) -> None:
    """Tells the user of something that has happened to snapshots."""
    failures.say(line, "snapshots")


class Copies(NamedTuple):
    """Parts are on the hosts of the servers.

    Attributes:
      num_ps: number of parameter servers.
      copies: on how many hosts each part is.
    """

    num_ps: int
    copies: int


class SnapshotWriter:
    """Writes one snapshot at a time, and keeps the newest.

    A snapshot that cannot be written is no reason to end training: the one before stays, and a line
    says why.

    Attributes:
      saved: the newest snapshot that this writer has completed; None before the first.
      chains: what the newest complete snapshot has of large tables; None where each snapshot has
        all of its files itself.
    """

    def __init__(
        self,
        folder: Folder,
        incarnation: int,
        keep: int,
        look: Callable[[], None] = lambda: None,
        copies: Copies | None = None,
        hosts: Callable[[], list[str]] = list,
    ):
        """Writes nothing yet.

        Args:
          folder: that this chief has claimed.
          incarnation: of this chief.
          keep: how many complete snapshots are kept.
          look: raises an error if a server is gone; called while somebody waits for the files.
          copies: for parts on the hosts of the servers; None for a folder that all share.
          hosts: returns the names of these hosts, by ps.
        """
        self._hosts = hosts
        self._writes: dict[threading.Thread, dict[str, Any]] = {}
        self._copies = copies
        self.saved: Id | None = None
        self.chains = rows.Chains() if copies is None else None
        self._folder, self._incarnation, self._keep = folder, incarnation, keep
        self._number = 0
        self._look = look
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a snapshot is being written."""
        return self._thread is not None and self._thread.is_alive()

    def write(
        self,
        values: list[parts.Values],
        tables: list[rows.RowsCut],
        arrays: Arrays,
        content: dict[str, Any],
        begins: Callable[[Id], None] = lambda id: None,
        then: Callable[[], None] = lambda: None,
    ) -> Id:
        """Begins to write a snapshot, once the one before is written.

        Args:
          values: what was read on the servers at the cut.
          tables: the large tables, of which nothing is read yet.
          arrays: of the chief.
          content: for the manifest.
          begins: called with the name of the snapshot before any file of it is there.
          then: called in the writer's thread when the snapshot is complete.

        Returns:
          The name of the snapshot.

        Raises:
          Superseded: a later chief writes to the folder.
        """
        self.wait()
        self._require_newest()
        self._number += 1
        id, at = Id(self._incarnation, self._number), time.time()
        begins(id)
        self._thread = threading.Thread(
            target=self._run,
            args=(id, values, tables, arrays, at, content, then),
            name="tfps-snapshot",
        )
        self._thread.daemon = True
        self._thread.start()
        return id

    def wait(self) -> None:
        """Waits until what was begun is written, with a line after each minute.

        Raises:
          Superseded: a later chief writes to the folder.
          TaskLost: a server went away.
        """
        begun, said = time.monotonic(), 0
        while self._thread is not None:
            self._thread.join(health.PATIENCE)
            if not self._thread.is_alive():
                self._thread = None
                break
            try:
                self._look()
            except BaseException:
                self._thread = None  # It may hang for ever; the next snapshot gets another one.
                raise
            if (minutes := int(time.monotonic() - begun) // 60) > said:
                said = minutes
                say(f"waiting for the files of a snapshot for {said} min; is a disk slow or full?")
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _require_newest(self) -> None:
        newest = self._folder.newest_incarnation()
        if newest > self._incarnation:
            raise errors.Superseded(
                f"chief {newest} writes snapshots to {self._folder.path} by now, and this is chief "
                f"{self._incarnation}, which ends; if both should train, give each its own folder"
            )

    def _run(
        self,
        id: Id,
        values: list[parts.Values],
        tables: list[rows.RowsCut],
        arrays: Arrays,
        at: float,
        content: dict[str, Any],
        then: Callable[[], None],
    ) -> None:
        try:
            with _tf.own_executor():
                self._write(id, values, tables, arrays, at, content)
            self.saved = id
            then()
        except errors.Superseded as e:
            self._folder.discard(id)
            self._error = e
        except Exception as e:
            self._folder.discard(id)
            if self.chains:
                self.chains = rows.Chains()  # The next one builds on nothing.
            before = f"{self.saved} stays the newest" if self.saved else "there is none yet"
            reason = str(e) if isinstance(e, errors.Error) else f"{type(e).__name__}: {e}"
            say(f"{id} could not be written to {self._folder.path} ({reason}); {before}")

    def _write(
        self,
        id: Id,
        values: list[parts.Values],
        tables: list[rows.RowsCut],
        arrays: Arrays,
        at: float,
        content: dict[str, Any],
    ) -> None:
        place, chains = self._place(id), self.chains
        if isinstance(place, places.Hosts):
            self._writes[threading.current_thread()] = place.content
        # Large tables first: while they are open, what is changed of them takes memory.
        of_tables = rows.write(place, id, tables)
        written = parts.write(place, values)
        servers = [v.ps for v in values]
        del values[:]  # The servers need not hold them any longer.
        content = {**content, "form": {**content["form"], "rows": rows.form_of(of_tables)}}
        if isinstance(place, places.Hosts):
            self._settle(place, servers, of_tables)
            content, written = {**content, "hosts": place.content}, []
        else:
            written += [part for one in of_tables for part in one.parts]
        try:
            with tf.device("CPU:0"):
                names = ["nothing", *arrays]
                save(self._folder.prefix(id, CHIEF), names, [0, *arrays.values()])
        except FILE_ERRORS as e:
            raise errors.SnapshotFailed(f"chief: {e}") from e
        self._require_newest()
        content = json.loads(json.dumps(content))
        earlier = {name: size for one in of_tables for name, size in one.earlier.items()}
        manifest = self._folder.commit(id, [*written, CHIEF], at, content, earlier)
        if chains:
            chains.complete(id, of_tables, manifest.files)
        self._clean_up()

    def _clean_up(self) -> None:
        """Deletes what is old; where that fails, the next snapshot tries again."""
        try:
            self._folder.keep_newest(self._keep, self._incarnation)
        except (OSError, tf.errors.OpError) as e:
            say(f"old files in {self._folder.path} could not be deleted: {errors.summary(str(e))}")

    def _place(self, id: Id) -> places.Place:
        """Where the parts of a new snapshot are to be."""
        if self._copies is None:
            return places.Shared(self._folder, id)
        used = places.slots_used(self._folder, self._folder.complete())
        # A thread that was given up may still write.
        self._writes = {t: content for t, content in self._writes.items() if t.is_alive()}
        used += self._writes.values()
        return places.Hosts.begin(self._folder, id, self._copies.num_ps, used)

    def _settle(
        self, place: places.Hosts, servers: list[int], tables: list[rows.WrittenRows]
    ) -> None:
        """Copies parts to other hosts."""
        assert self._copies is not None
        more: dict[int, list[str]] = {ps: [] for ps in servers}
        for one in tables:
            pieces = one.of.pieces
            more[pieces.ps] += [suffix_of(pieces.bucket, k) for k in range(one.num_files)]
        parts.settle(place, more, self._copies.copies, self._hosts())
