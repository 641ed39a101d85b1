"""`Snapshots`: where the state of training is saved, how often, and how much of it is kept."""

import dataclasses
import os

from tfps import errors


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """What `tfps.Trainer(snapshots=...)` saves of training, so that it can go on after a loss.

    A snapshot is taken at a cut: a moment at which workers have finished and pushed what they were
    doing, in the middle of an epoch or between epochs. It has everything that training remembers
    (see `TrainingState`), and the position in the data. The servers write it while training goes
    on.

    The same program, started again with the same folder, goes on where the newest complete
    snapshot was taken. Each trainer needs a folder of its own.

    Attributes:
      directory: a folder that the chief and all ps can write to: a path, or a URL of any scheme
        that TensorFlow's file systems know.
      every: s from one snapshot to the next; None if only `every_updates` counts.
      every_updates: updates of the servers from one snapshot to the next; None if only `every`
        counts. Runs whose cuts are at the same updates are equal bit by bit with one worker. The
        chief then asks for the report of every call on a worker.
      keep: how many complete snapshots are kept, the newest.
      copies: on how many servers' hosts the part of each ps is. With 1, the chief and all ps share
        `directory`. With more, they need not: each ps writes its part to `directory` on its own
        host, and copies of it to other hosts, so that a host may vanish. What the chief writes is
        on the chief's host alone. Parts have up to 2 GiB then, and only the job itself can read
        them, neither `python -m tfps.snapshot export` nor an evaluator.
      piece_bytes: about how many bytes of a large table are copied at once, while updates of that
        server wait. Tables that grow, and tables that are updated by rows
        (`sparse_updates="lazy"`) whose part on a server has more bytes than this, are written in
        such pieces while training goes on. With `copies=1` a snapshot then has only rows that have
        changed since the one before, and needs files of that one; they stay until no snapshot that
        is kept needs them.
    """

    directory: str | os.PathLike
    every: float | None = 30.0
    every_updates: int | None = None
    keep: int = 2
    copies: int = 1
    piece_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        try:
            path = os.fspath(self.directory)
        except TypeError:
            path = ""
        if not path or not isinstance(path, str):
            raise errors.ConfigError(
                f"directory={self.directory!r} is no path; give a folder that all ps can write to"
            )
        if self.every is not None and not self.every >= 0:
            raise errors.ConfigError(f"every={self.every!r} must be a number of seconds, or None")
        counts = {
            "every_updates": self.every_updates,
            "keep": self.keep,
            "copies": self.copies,
            "piece_bytes": self.piece_bytes,
        }
        for name, count in counts.items():
            if name == "every_updates" and count is None:
                continue
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise errors.ConfigError(f"{name}={count!r} must be a whole number of at least 1")
        if self.every is None and self.every_updates is None:
            raise errors.ConfigError(
                "every=None and every_updates=None would save nothing before the end; give one"
            )


def of(given: "Snapshots | str | os.PathLike | None") -> Snapshots | None:
    """The argument of `Trainer`: a `Snapshots`, or a folder for one with its defaults.

    Raises:
      ConfigError: it is neither.
    """
    if given is None or isinstance(given, Snapshots):
        return given
    return Snapshots(given)
