"""Workers that were told to end, and hand back what they hold before they go.

SIGTERM is a notice: the machine will be taken away. A worker that gets it puts a note into a queue
on its own server and waits for a few seconds. The chief looks into these queues once a second,
gives the worker nothing more, and tells it to go when nothing of it is outstanding.
"""

import threading
import time
import weakref

import tensorflow as tf

from tfps.cluster import ending, server, shutdown, sockets
from tfps.cluster.spec import Cluster

# s between two looks, and s that an answer may take.
_LOOK, _ANSWERS = 1.0, 2.0

# s after the last `attend` for which the chief still looks.
_ATTENTION = 20.0


class Departures:
    """Looks which workers of a cluster were told to end, each by a thread of its own.

    Workers whose servers are in this process end with it, and are not asked.
    """

    def __init__(self, cluster: Cluster):
        """Asks nobody yet.

        Args:
          cluster: whose workers are asked. This process is connected to it.
        """
        self._cluster = cluster
        self._until = 0.0
        self._told: set[int] = set()
        self._lock = threading.Lock()
        self._threads: dict[int, threading.Thread] = {}

    def attend(self) -> None:
        """Has the workers asked for the next 20 s; whoever waits for calls repeats this."""
        now = time.monotonic()
        if now + _ATTENTION - self._until < 1.0:
            return
        self._until = now + _ATTENTION
        for worker, address in enumerate(self._cluster.spec["worker"]):
            if server.is_here(address):
                continue
            with self._lock:
                if worker not in self._threads:
                    name, arguments = f"tfps-departs-{worker}", (weakref.ref(self), worker, address)
                    thread = threading.Thread(target=_ask, args=arguments, name=name, daemon=True)
                    self._threads[worker] = thread
                    thread.start()

    def told(self) -> frozenset[int]:
        """The workers that were told to end, and that have not been let go."""
        with self._lock:
            return frozenset(self._told)

    def let_go(self, worker: int) -> None:
        """Tells a worker that nothing of it is outstanding. Nobody waits for that."""
        self.forget(worker)
        address = self._cluster.spec["worker"][worker]
        shutdown.tell("worker", worker, address, shutdown.GO)

    def forget(self, worker: int) -> None:
        """Notes that a worker is gone, whether or not it was told to end."""
        with self._lock:
            self._told.discard(worker)

    def _is_attended(self, worker: int) -> bool:
        with self._lock:
            if time.monotonic() < self._until and not ending.has_begun():
                return True
            del self._threads[worker]
            return False

    def _note(self, worker: int) -> None:
        with self._lock:
            self._told.add(worker)


def _ask(departures: "weakref.ref[Departures]", worker: int, address: str) -> None:
    """Takes the notes out of a worker's queue, as long as somebody attends."""
    options = tf.compat.v1.RunOptions(timeout_in_ms=int(_ANSWERS * 1000))
    with tf.Graph().as_default():
        notes = shutdown.queue("worker", worker, "departs")
        size, take = notes.size(), notes.dequeue()
        opened: tf.compat.v1.Session | None = None
        while (owner := departures()) is not None and owner._is_attended(worker):
            try:
                if opened is None and not sockets.answers(address, _ANSWERS):
                    time.sleep(_LOOK)
                    continue
                if opened is None:
                    opened = shutdown.open_session(f"grpc://{address}", "worker", worker, _ANSWERS)
                if opened.run(size, options=options):
                    opened.run(take, options=options)
                    owner._note(worker)
            except tf.errors.OpError:
                # It is gone, or frozen, and is asked again when it is back.
                if opened is not None:
                    shutdown.close(opened)
                opened = None
            del owner
            time.sleep(_LOOK)
        if opened is not None:
            shutdown.close(opened)
