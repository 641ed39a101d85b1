"""Where the parts of a snapshot are: in a folder that all share, or on the hosts of the servers.

On the servers' hosts, a part is in the folder of its own ps and, as a copy, in that of others: a
host may vanish. Only operations of TensorFlow reach these folders, and none of them deletes files.
So the files have few names, which are used again and again: a snapshot takes a slot that no
complete one has.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

import tensorflow as tf

from tfps import errors
from tfps.cluster.devices import ps_device
from tfps.store.snapshot_folder import FILE_ERRORS, Folder, Id

# The files of a checkpoint that one device has written.
_SUFFIXES = ".index", ".data-00000-of-00001"

# Bytes of a file that cross from host to host at once: a message of gRPC has less than 2 GiB.
_MOST = (1 << 31) - (1 << 20)

# Fingerprints are below this.
_BUCKETS = (1 << 62) - 1


class Place(Protocol):
    """Where the parts of one snapshot are."""

    def of(self, id: Id) -> "Place":
        """Where the parts of an earlier snapshot are, some of whose files belong to this one."""

    def prefix(self, ps: int) -> str:
        """The prefix under which a ps writes its part.

        Files of rows have this prefix too, and then a suffix (`snapshot_form.suffix_of`).
        """

    def prepare(self, ps: int) -> None:
        """To be called before a ps writes."""

    def on_ps(self, ps: int) -> str:
        """The prefix under which a ps finds its part.

        Raises:
          SnapshotDamaged: the part is nowhere.
        """

    def on_chief(self, ps: int) -> str:
        """The prefix under which the chief finds the part of a ps; see `on_ps`."""


class Shared:
    """A folder that the chief and all ps share."""

    def __init__(self, folder: Folder, id: Id):
        """Makes nothing.

        Args:
          folder: of the snapshots.
          id: which snapshot.
        """
        self._folder, self._id = folder, id

    def of(self, id: Id) -> "Shared":
        """See `Place`."""
        return Shared(self._folder, id)

    def prefix(self, ps: int) -> str:
        """See `Place`."""
        return self._folder.prefix(self._id, f"ps-{ps}")

    on_ps = on_chief = prefix

    def prepare(self, ps: int) -> None:
        """See `Place`; the chief has made the folder."""


class Hosts:
    """A folder of the same path on the host of each ps.

    Attributes:
      content: for the manifest, once the parts are settled.
    """

    def __init__(self, folder: Folder, id: Id, num_ps: int, content: dict[str, Any]):
        """Makes nothing.

        Args:
          folder: of the chief's part; its path holds on every host.
          id: which snapshot.
          num_ps: how many parameter servers there are now.
          content: what the manifest says of the parts; see `begin`.
        """
        self._folder, self._id, self._num_ps = folder, id, num_ps
        self.content = content

    @classmethod
    def begin(cls, folder: Folder, id: Id, num_ps: int, used: Iterable[Any]) -> "Hosts":
        """The place of a new snapshot.

        Args:
          folder, id, num_ps: see the constructor.
          used: what the manifests of the complete snapshots say of their parts, or None.
        """
        taken = {one["slot"] for one in used if one}
        slot = next(s for s in range(len(taken) + 1) if s not in taken)
        return cls(folder, id, num_ps, {"slot": slot, "parts": {}})

    def of(self, id: Id) -> "Hosts":
        """See `Place`. A snapshot on the servers' hosts has all of its files itself."""
        assert id == self._id
        return self

    def prefix(self, ps: int) -> str:
        """See `Place`."""
        return self._folder.join(f"hosted-{self.content['slot']:03d}.ps-{ps}")

    def prepare(self, ps: int) -> None:
        """See `Place`. The folder is made on the ps's host."""
        with tf.device(ps_device(ps)):
            tf.io.write_file(self._folder.join(f"hosted.ps-{ps}"), "")

    def settle(
        self, ps: int, copies: int, hosts: Sequence[str] = (), more: Sequence[str] = ()
    ) -> None:
        """Copies a part that is written to other hosts, and notes it for the manifest.

        Args:
          ps: whose part it is.
          copies: on how many hosts it is to be.
          hosts: the name of each ps's host. Several ps may be on one: others are taken first.
          more: what the prefixes of the part's other checkpoints have after that of the part.

        Raises:
          SnapshotFailed: a copy could not be written, or is not what was written.
        """
        others = _others(ps, copies - 1, list(hosts) or list(map(str, range(self._num_ps))))
        files = {}
        for suffix in [one + end for one in ["", *more] for end in _SUFFIXES]:
            if (found := self._found(ps, self.prefix(ps) + suffix)) is None:
                raise errors.SnapshotFailed(f"ps {ps}: its part is not there though it was written")
            files[suffix] = found
        for other in others:
            self.prepare(other)
            self._transfer((ps, self.prefix(ps)), (other, self._copy(ps, other)), files)
            if not self._is_whole(other, self._copy(ps, other), files):
                raise errors.SnapshotFailed(f"ps {other}: its copy of the part of ps {ps} differs")
        self.content["parts"][str(ps)] = {"others": others, "files": files}

    def on_ps(self, ps: int) -> str:
        """See `Place`."""
        here = ps, self.prefix(ps)
        source = self._whole(ps)
        if source != here:
            self.prepare(ps)
            self._transfer(source, here, self._files(ps))
        return here[1]

    def on_chief(self, ps: int) -> str:
        """See `Place`. The part is copied to the chief's folder, with the snapshot's name."""
        on, prefix = self._whole(ps)
        here = self._folder.prefix(self._id, f"ps-{ps}")
        for suffix in self._files(ps):
            with tf.device(ps_device(on)):
                content = tf.io.read_file(prefix + suffix)
            with tf.device("CPU:0"):
                tf.io.write_file(here + suffix, tf.identity(content))
        return here

    def _files(self, ps: int) -> dict[str, list[int]]:
        return self.content["parts"][str(ps)]["files"]

    def _copy(self, ps: int, other: int) -> str:
        return f"{self.prefix(ps)}.on-{other}"

    def _whole(self, ps: int) -> tuple[int, str]:
        """(ps on whose host it is, its prefix) of a part that is as it was written."""
        others = self.content["parts"][str(ps)]["others"]
        places = [(ps, self.prefix(ps)), *((q, self._copy(ps, q)) for q in others)]
        for on, prefix in places:
            if on < self._num_ps and self._is_whole(on, prefix, self._files(ps)):
                return on, prefix
        hosts = " or ".join(f"ps {on}" for on, _ in places)
        raise errors.SnapshotDamaged(
            f"the part of ps {ps} of {self._id} is not whole on the host of {hosts}"
        )

    def _is_whole(self, on: int, prefix: str, files: dict[str, list[int]]) -> bool:
        return all(self._found(on, prefix + suffix) == found for suffix, found in files.items())

    def _found(self, on: int, path: str) -> list[int] | None:
        """[bytes, fingerprint] of a file on a ps's host; None if it cannot be read."""
        try:
            with tf.device(ps_device(on)):
                content = tf.io.read_file(path)
                size = tf.strings.length(content)
                # FarmHash64, which tells files apart that chance has altered.
                mark = tf.strings.to_hash_bucket_fast(content, _BUCKETS)
            return [int(size), int(mark)]
        except FILE_ERRORS as e:
            if "context_id" in str(e):
                raise  # The process was started anew, and says nothing of its files.
            return None

    def _transfer(self, source: tuple[int, str], to: tuple[int, str], files: dict) -> None:
        for suffix, (size, _) in files.items():
            if size > _MOST:
                raise errors.SnapshotFailed(
                    f"ps {source[0]}: its part has {size:,} bytes, and copies are made of up to "
                    f"{_MOST:,}; use more ps, or a folder that all share"
                )
            with tf.device(ps_device(source[0])):
                content = tf.io.read_file(source[1] + suffix)
            with tf.device(ps_device(to[0])):
                tf.io.write_file(to[1] + suffix, tf.identity(content))


def _others(ps: int, count: int, hosts: list[str]) -> list[int]:
    """The ps to whose hosts a part is copied: those on hosts without it come first."""
    order = [(ps + k) % len(hosts) for k in range(1, len(hosts))]
    found: list[int] = []
    for _ in range(count):
        have = {hosts[p] for p in [ps, *found]}
        left = [p for p in order if p not in found]
        found.append(next((p for p in left if hosts[p] not in have), left[0]))
    return found


def of_manifest(folder: Folder, id: Id, content: dict[str, Any], num_ps: int) -> Place:
    """Where the parts of a complete snapshot are.

    Args:
      folder: of the manifest.
      id: which snapshot.
      content: of the manifest.
      num_ps: how many parameter servers this process is connected to; 0 for none.

    Raises:
      SnapshotDamaged: they are on the servers' hosts, and this process has no servers.
    """
    hosts = content.get("hosts")
    if hosts is None:
        return Shared(folder, id)
    if not num_ps:
        raise errors.SnapshotDamaged(
            f"the parts of {id} are on the hosts of the parameter servers (copies=), which only "
            "the job itself can reach"
        )
    return Hosts(folder, id, num_ps, hosts)


def slots_used(folder: Folder, ids: Collection[Id]) -> list[Any]:
    """What the manifests of snapshots say of where their parts are; see `Hosts.begin`."""
    found = []
    for id in ids:
        try:
            found.append(folder.read(id).content.get("hosts"))
        except errors.SnapshotDamaged:
            continue  # Nobody reads it.
    return found
