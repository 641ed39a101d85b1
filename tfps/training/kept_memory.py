"""What workers remember from one run to the next, on the workers themselves."""

import tensorflow as tf

from tfps.cluster.calls import WorkerCalls
from tfps.worker.worker_step import WorkerMemory


class KeptMemory:
    """The memory of each worker, by kind, until a run takes it.

    A worker may be lost, and may even be back, while nobody trains: in an evaluation, in a
    prediction, or while a snapshot is read. Its memory is on no task then, so what was kept of an
    earlier life of a worker counts as nothing.
    """

    def __init__(self, calls: WorkerCalls):
        """Starts with nothing.

        Args:
          calls: to the workers.
        """
        self._calls = calls
        self._kept: dict[str, list[tuple[int, WorkerMemory | None]]] = {}  # (life, its memory)

    def keep(self, kind: str, memory: list[WorkerMemory | None]) -> None:
        """Keeps what workers remember until `take`.

        Args:
          kind: of memory.
          memory: per worker, on the worker; None for one that remembers nothing.
        """
        self._kept[kind] = list(zip(self._calls.lives, self._of_living(memory), strict=True))

    def take(self, kind: str) -> list[WorkerMemory | None]:
        """Per worker, what it remembers, or None; nobody keeps it any more.

        Args:
          kind: of memory.
        """
        taken = self._now(kind)
        self._kept.pop(kind, None)
        return taken

    def forget(self) -> None:
        """Forgets all kinds."""
        self._kept = {}

    def read(self) -> dict[str, list[WorkerMemory | None]]:
        """Kind -> per worker, what it remembers, as arrays; None for a worker that is lost.

        Raises:
          ConfigError: workers are in calls.
        """
        now = {kind: self._now(kind) for kind in self._kept}
        if all(leaf is None for leaf in tf.nest.flatten(now)):
            return now

        def read(worker: int) -> dict[str, WorkerMemory | None]:
            mine = {kind: memory[worker] for kind, memory in now.items()}
            return tf.nest.map_structure(lambda t: None if t is None else t.numpy(), mine)

        # Each by its own thread: a worker that is lost meanwhile keeps nobody waiting.
        found = self._calls.run_on_each(read)
        return {kind: [None if one is None else one[kind] for one in found] for kind in now}

    def _now(self, kind: str) -> list[WorkerMemory | None]:
        calls = self._calls
        kept = self._kept.get(kind, [(life, None) for life in calls.lives])
        pairs = zip(kept, calls.lives, strict=True)
        return self._of_living([m if life == now else None for (life, m), now in pairs])

    def _of_living(self, memory: list[WorkerMemory | None]) -> list[WorkerMemory | None]:
        return [m if w in self._calls.living else None for w, m in enumerate(memory)]
