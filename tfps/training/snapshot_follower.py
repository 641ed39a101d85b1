"""Follows the snapshots of a job that trains elsewhere; only reads."""

import time
from collections.abc import Iterator

from tfps import errors
from tfps.store.snapshot_folder import Folder, Id, Manifest
from tfps.training.snapshot_writer import say


class Follower:
    """Gives the newest snapshot of a folder, again and again, until the job's `fit` has ended.

    Snapshots that come while somebody looks at one are passed over, but for the newest.
    """

    def __init__(self, folder: Folder, timeout: float, fits: int = 1, poll: float = 1.0):
        """Reads nothing yet.

        Args:
          folder: in which a chief writes, now or later.
          timeout: s for which nothing may change in the folder before the job counts as dead.
          fits: how many calls of `fit` the job consists of.
          poll: s from one look at the folder to the next.
        """
        self._folder, self._timeout, self._fits, self._poll = folder, timeout, fits, poll

    def follow(self, seen: Id | None = None) -> Iterator[Manifest]:
        """The manifests of snapshots, each newer than the one before.

        Args:
          seen: only newer snapshots count; None for all.

        Raises:
          StartupTimeout: nothing came within `timeout`.
          ChiefLost: nothing followed the last one within `timeout`, and the `fit` has not ended.
        """
        followed: Id | None = None
        listing, changed = self._folder.names(), time.monotonic()
        while True:
            manifest = self._newest(seen)
            if manifest is not None:
                seen = followed = manifest.id
                yield manifest
                if self.is_last(manifest):
                    return
                changed = time.monotonic()
                continue
            if (now := self._folder.names()) != listing:
                listing, changed = now, time.monotonic()
            if time.monotonic() > changed + self._timeout:
                raise self._silence(followed)
            time.sleep(self._poll)

    def is_over(self, seen: Id) -> bool:
        """Whether nothing will follow a snapshot, because the job's last `fit` has ended with it.

        False also if the snapshot was deleted, or if another program has begun since.
        """
        try:
            manifest = self._folder.read(seen)
        except errors.SnapshotDamaged:
            return False
        return self.is_last(manifest) and not self._is_of_earlier_job(manifest)

    def is_last(self, manifest: Manifest) -> bool:
        """Whether the job's last `fit` has ended with this snapshot."""
        content = manifest.content
        return bool(content["has_ended"]) and content["fit"] >= self._fits

    def _newest(self, seen: Id | None) -> Manifest | None:
        for id in self._folder.complete():
            if seen is not None and id <= seen:
                return None
            try:
                manifest = self._folder.read(id)
            except errors.SnapshotDamaged as e:
                self.pass_over(id, e)
                continue
            return None if self._is_of_earlier_job(manifest) else manifest
        return None

    def _is_of_earlier_job(self, manifest: Manifest) -> bool:
        """Whether the program that wrote a last snapshot has ended, and another one has begun."""
        folder, own = self._folder, manifest.id.incarnation
        is_over = self.is_last(manifest) and folder.has_ended(own)
        return is_over and folder.newest_incarnation() > own

    def pass_over(self, id: Id, error: errors.SnapshotDamaged) -> None:
        """Says that a snapshot cannot be read, unless it was deleted because there are newer ones.

        Args:
          id: which snapshot.
          error: what was wrong with it.
        """
        if id in self._folder.complete():
            say(f"{id} is passed over: {error}")

    def _silence(self, followed: Id | None) -> errors.Error:
        path, timeout = self._folder.path, self._timeout
        if followed is None:
            return errors.StartupTimeout(
                f"no new snapshot came to {path} within {timeout:g} s; start the job with this "
                "folder, or allow more time"
            )
        return errors.ChiefLost(
            f"nothing has followed {followed} in {path} for {timeout:g} s, though its fit has not "
            "ended; start the job again, or allow more time"
        )
