"""The folder of snapshots: which files belong together, which are complete, and which are old.

A snapshot is a part from each ps, a part from the chief, and a manifest. The manifest is written
last and is renamed to its final name, so a snapshot without a manifest is one whose writing was
cut short, and nobody reads it. Files of rows may belong to later snapshots, too: a file stays for
as long as a manifest that is kept names it. The name of every file has the incarnation of the chief
that wrote it and the number of the snapshot:

```
chief-000002.json                                       a chief began to write here
snapshot-000002-000017.ps-0.index, .data-00000-of-00001 a part: a TensorFlow checkpoint
snapshot-000002-000017.ps-0.rows-3-00000.index, ...     rows of a large table of that part
snapshot-000002-000017.chief.index, .data-00000-of-00001
snapshot-000002-000017.json                             the manifest: contents, sizes, checksums
ended-000002.json                                       that chief's program has ended in order
stop-000001-000003.json                                 somebody asks fit 3 of job 1 to end
```
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import tensorflow as tf

from tfps import errors

_NAME = re.compile(r"snapshot-(\d{6,})-(\d{6,})\.(.+)")
_FILE = re.compile(r"(.+)\.(index|data-\d+-of-\d+)")
_CLAIM = re.compile(r"chief-(\d{6,})\.json")

# What the servers and the file system raise when a file cannot be read or written. Other errors
# of TensorFlow say that a server could not be asked.
FILE_ERRORS = (
    tf.errors.NotFoundError,
    tf.errors.DataLossError,
    tf.errors.OutOfRangeError,
    tf.errors.InvalidArgumentError,
    tf.errors.FailedPreconditionError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnknownError,
    tf.errors.InternalError,
    OSError,
)


class Id(NamedTuple):
    """Which snapshot; a later one is greater.

    Attributes:
      incarnation: of the chief that wrote it, from 1.
      number: of the snapshot among those of that chief, from 1.
    """

    incarnation: int
    number: int

    def __str__(self) -> str:
        return f"snapshot-{self.incarnation:06d}-{self.number:06d}"


class Manifest(NamedTuple):
    """What a complete snapshot is made of.

    Attributes:
      id: which snapshot.
      time: s since 1970 at which the cut was.
      files: name -> (bytes, SHA-256 of the content, or "" for the data of a part, of which
        TensorFlow keeps a checksum for each tensor).
      content: what the writer says about the snapshot, of JSON's types.
    """

    id: Id
    time: float
    files: dict[str, tuple[int, str]]
    content: dict[str, Any]


class Folder:
    """Names, writes, checks and deletes files; it knows nothing of what is in a snapshot.

    Attributes:
      path: the folder, of any scheme that `tf.io.gfile` knows.
    """

    def __init__(self, path: str | os.PathLike):
        """Makes nothing yet.

        Args:
          path: of the folder.
        """
        self.path = os.fspath(path).removeprefix("file://")

    def join(self, name: str) -> str:
        """The full path of a file."""
        return os.path.join(self.path, name)

    def prefix(self, id: Id, part: str) -> str:
        """The prefix under which TensorFlow writes a part, such as "ps-0"."""
        return self.join(f"{id}.{part}")

    @property
    def is_local(self) -> bool:
        """Whether the operating system's calls reach the folder."""
        return "://" not in self.path

    # Chiefs.

    def claim(self) -> int:
        """Notes that a chief begins to write here; returns its incarnation, above all before it.

        Raises:
          ConfigError: the folder cannot be made or written.
        """
        try:
            tf.io.gfile.makedirs(self.path)
            while True:
                incarnation = self.newest_incarnation() + 1
                text = json.dumps(
                    {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
                )
                if self._create(f"chief-{incarnation:06d}.json", text):
                    return incarnation
        except FILE_ERRORS as e:
            raise errors.ConfigError(
                f"snapshots cannot be written to {self.path}: {_reason(e)}; give a folder that the "
                "chief and all ps can write to"
            ) from e

    def newest_incarnation(self) -> int:
        """The highest incarnation of a chief that has begun to write here; 0 for none."""
        claims = [m for m in map(_CLAIM.fullmatch, self.names()) if m]
        parts = [m for m in map(_NAME.fullmatch, self.names()) if m]
        return max((int(m[1]) for m in [*claims, *parts]), default=0)

    def end(self, incarnation: int) -> None:
        """Notes that a chief's program has ended in order."""
        self._write(f"ended-{incarnation:06d}.json", json.dumps({"time": time.time()}))

    def has_ended(self, incarnation: int) -> bool:
        """Whether that chief's program has ended in order."""
        return tf.io.gfile.exists(self.join(f"ended-{incarnation:06d}.json"))

    # What an evaluator asks for.

    def ask_to_stop(self, job: int, fit: int, reason: str) -> None:
        """Asks the chief to end a `fit` at the next cut.

        Args:
          job: the incarnation of the chief with which the job began.
          fit: the number of the `fit`, from 1.
          reason: in words, for the chief's line about it.

        Raises:
          OSError, tf.errors.OpError: the file cannot be written.
        """
        self._write(_stop(job, fit), json.dumps({"time": time.time(), "reason": reason}))

    def stop_reason(self, job: int, fit: int) -> str | None:
        """Why a `fit` was asked to end; None if it was not."""
        try:
            with tf.io.gfile.GFile(self.join(_stop(job, fit)), "r") as f:
                return str(json.loads(f.read())["reason"])
        except FILE_ERRORS:
            return None

    # Snapshots.

    def complete(self) -> list[Id]:
        """The snapshots that have a manifest, the newest first."""
        found = [m for m in map(_NAME.fullmatch, self.names()) if m and m[3] == "json"]
        return sorted((Id(int(m[1]), int(m[2])) for m in found), reverse=True)

    def read(self, id: Id) -> Manifest:
        """The manifest of a snapshot, after a look at all of its files.

        Raises:
          SnapshotDamaged: the manifest or another file is not what was written.
        """
        manifest = self._manifest(id)
        for file, expected in manifest.files.items():
            self._check(file, *expected)
        return manifest

    def _manifest(self, id: Id) -> Manifest:
        name = f"{id}.json"
        try:
            with tf.io.gfile.GFile(self.join(name), "rb") as f:
                text = f.read()
        except FILE_ERRORS as e:
            raise errors.SnapshotDamaged(f"{name} cannot be read: {_reason(e)}") from e
        body, _, digest = text.rstrip(b"\n").rpartition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise errors.SnapshotDamaged(f"{name} is torn or was altered: its checksum is wrong")
        read = json.loads(body)
        files = {file: (size, digest) for file, (size, digest) in read["files"].items()}
        return Manifest(id, read["time"], files, read["content"])

    def commit(
        self,
        id: Id,
        parts: Iterable[str],
        at: float,
        content: dict[str, Any],
        earlier: Mapping[str, tuple[int, str]] = MappingProxyType({}),
    ) -> Manifest:
        """Makes a snapshot complete whose parts are written.

        Args:
          id: which snapshot.
          parts: such as "ps-0".
          at: s since 1970 at which the cut was.
          content: of JSON's types.
          earlier: files of earlier snapshots that belong to this one; see `Manifest.files`.

        Raises:
          SnapshotFailed: a part is not there, or the manifest cannot be written.
        """
        files = dict(earlier)
        try:
            names = sorted(self.names())
            if gone := sorted(earlier.keys() - set(names)):
                raise errors.SnapshotFailed(f"{gone[0]}, of an earlier snapshot, is gone")
            written: dict[str, list[str]] = {}
            for name in names:
                if m := _FILE.fullmatch(name):
                    written.setdefault(m[1], []).append(name)
            for part in parts:
                mine = written.get(f"{id}.{part}", [])
                if len(mine) < 2:
                    raise errors.SnapshotFailed(
                        f"{id}.{part} is not in {self.path} though it was written; give a folder "
                        "that the chief and all ps share"
                    )
                for name in mine:
                    files[name] = self._settled(name)
            body = json.dumps({"time": at, "files": files, "content": content}).encode()
            digest = hashlib.sha256(body).hexdigest().encode()
            self._write(f"{id}.json", b"\n".join([body, digest, b""]))
        except FILE_ERRORS as e:
            raise errors.SnapshotFailed(_reason(e)) from e
        return Manifest(id, at, files, content)

    def keep_newest(self, count: int, incarnation: int) -> None:
        """Deletes what is old: complete snapshots beyond the newest, and what no manifest names.

        Args:
          count: how many complete snapshots are kept.
          incarnation: of the chief that deletes. Files of a later chief stay, and so does what is
            newer than the newest complete snapshot.
        """
        complete = self.complete()
        kept = set(complete[:count])
        named = self._named_by(kept)
        if named is None:
            return
        for id in complete[count:]:
            if id.incarnation <= incarnation:
                self._remove(f"{id}.json")  # First, so that it does not name what is gone.
        for name in self.names():
            if not (m := _NAME.fullmatch(name)):
                continue
            id = Id(int(m[1]), int(m[2]))
            is_old = bool(complete) and id < complete[0] and id.incarnation <= incarnation
            if is_old and id not in kept and name not in named:
                self._remove(name)

    def _named_by(self, ids: Iterable[Id]) -> set[str] | None:
        """The files of some snapshots, also those that earlier snapshots have written.

        None if a manifest cannot be read: maybe it can be later, and then its files are wanted.
        """
        found: set[str] = set()
        for id in ids:
            try:
                found |= self._manifest(id).files.keys()
            except errors.SnapshotDamaged:
                return None
        return found

    def discard(self, id: Id) -> None:
        """Deletes the files of a snapshot that could not be completed."""
        for name in self.names():
            if name.startswith(f"{id}."):
                self._remove(name)

    # Files.

    def names(self) -> list[str]:
        """The names of all files in the folder; none if there is no folder."""
        try:
            return list(tf.io.gfile.listdir(self.path))
        except tf.errors.NotFoundError:
            return []

    def _check(self, name: str, size: int, digest: str) -> None:
        try:
            found = tf.io.gfile.stat(self.join(name)).length
            if found != size:
                raise errors.SnapshotDamaged(f"{name} has {found} bytes instead of {size}")
            if digest and self._digest(name) != digest:
                raise errors.SnapshotDamaged(f"{name} was altered: its checksum is wrong")
        except FILE_ERRORS as e:
            raise errors.SnapshotDamaged(f"{name} cannot be read: {_reason(e)}") from e

    def _settled(self, name: str) -> tuple[int, str]:
        """(size, checksum) of a file that was just written, once it is on the disk."""
        path = self.join(name)
        if self.is_local:
            _sync(path)
        digest = self._digest(name) if name.endswith(".index") else ""
        return tf.io.gfile.stat(path).length, digest

    def _digest(self, name: str) -> str:
        with tf.io.gfile.GFile(self.join(name), "rb") as f:
            return hashlib.sha256(f.read()).hexdigest()

    def _create(self, name: str, text: str) -> bool:
        """Writes a file that must not exist; returns false if another process was first."""
        if not self.is_local:
            self._write(name, text)
            return True
        try:
            with open(self.join(name), "x") as f:
                f.write(text)
        except FileExistsError:
            return False
        return True

    def _write(self, name: str, text: str | bytes) -> None:
        """Writes a file that is either whole or not there, whatever happens meanwhile."""
        data = text.encode() if isinstance(text, str) else text
        path, draft = self.join(name), self.join(f"{name}.draft")
        if not self.is_local:
            with tf.io.gfile.GFile(draft, "wb") as f:
                f.write(data)
            tf.io.gfile.rename(draft, path, overwrite=True)
            return
        with open(draft, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(draft, path)
        _sync(self.path)

    def _remove(self, name: str) -> None:
        # Whoever cleans up next tries again.
        with contextlib.suppress(*FILE_ERRORS):
            tf.io.gfile.remove(self.join(name))


def _stop(job: int, fit: int) -> str:
    return f"stop-{job:06d}-{fit:06d}.json"


def _sync(path: str) -> None:
    """Waits until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    if isinstance(error, tf.errors.OpError):
        return errors.summary(error.message)
    return str(error)
