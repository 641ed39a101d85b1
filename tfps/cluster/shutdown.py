"""How the chief tells the servers that the job is over, and how they learn that it died.

TensorFlow's servers run until they are killed: nothing in the runtime tells a worker or a parameter
server that its job is done. Here the message travels through the runtime itself, so that no further
port is needed. Each server process waits for an element of a queue on its own device, through a
session of its own. The chief opens a session to that server and enqueues the message. A server
notices that the chief died by asking at the chief's address now and then. A chief that was told to
end says that it goes, for the job is not over if another chief comes.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import tensorflow as tf

from tfps import _tf_members, errors
from tfps.cluster import chief_watch, greeting, sockets
from tfps.cluster.anew import Anew

DONE = "done"

# The message of a chief that finds a server with the memory of the chief before it.
ANEW = "anew"

# The message of a chief that was told to end. The job is not over: another chief may come.
LEAVES = "leaves"

# The message to a worker that was told to end: it has nothing that anybody waits for.
GO = "go"

# The message to a parameter server that is to serve another one's part as well begins with this,
# and goes on with the index of that one.
HOST = "host "


class Tasks(Protocol):
    """What is needed of a `tfps.Cluster`."""

    spec: dict[str, list[str]]
    started: dict[str, list[str]]
    guests: list[str]
    task_type: str
    task_index: int


_ANSWERS = 10.0  # s that a server may take to open or close a session
_LOOK = 0.2  # s between two looks for what this process was told meanwhile
_POLL = 2.0  # s between two questions to the chief, and s that an answer may take
_LINGER = 3.0  # s that a server waits for the chief's own exit after the message


def _now() -> float:
    """The time in s since the machine started. It goes on while the process or machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def queue(job: str, index: int, name: str = "farewell") -> tf.queue.FIFOQueue:
    """Returns, in a graph, the queue of strings that a server has under a name."""
    with tf.device(f"/job:{job}/task:{index}/device:CPU:0"):
        return tf.queue.FIFOQueue(8, [tf.string], shapes=[[]], shared_name=f"tfps_{name}")


@contextlib.contextmanager
def session(
    target: str, job: str, index: int, limit: float | None = _ANSWERS
) -> Iterator[tf.compat.v1.Session]:
    """A session of the present graph on one server, for the time of a `with`; see `open_session`.

    TensorFlow's own `with` closes a session after an error in a thread, whose own error, that of a
    server which is gone, the interpreter would print.
    """
    opened = open_session(target, job, index, limit)
    try:
        yield opened
    finally:
        close(opened)


def close(opened: tf.compat.v1.Session) -> None:
    """Closes a session; one of a server that is gone needs no closing."""
    with contextlib.suppress(tf.errors.OpError):
        opened.close()


def open_session(
    target: str, job: str, index: int, limit: float | None = _ANSWERS
) -> tf.compat.v1.Session:
    """Returns a session of the present graph on one server.

    Args:
      target: of the server.
      job, index: of its task.
      limit: s that opening it, closing it, and a run without a limit of its own may take; None for
        no limit. Without one, to close a session waits until a server that was killed is back.
    """
    # The filter keeps the session from waiting for the other tasks of the cluster.
    config = tf.compat.v1.ConfigProto(device_filters=[f"/job:{job}/task:{index}"])
    if limit is not None:
        config.operation_timeout_in_ms = int(limit * 1000)
    return tf.compat.v1.Session(target, config=config)


def servers(cluster: Tasks) -> list[tuple[str, int, str]]:
    """Returns (job, index, address) of all servers, as what they were started.

    A guest says itself what it is; one that does not answer is left out.
    """
    found = [
        (job, i, address)
        for job in ("worker", "ps", "spare")
        for i, address in enumerate(cluster.started.get(job, ()))
    ]
    for address in cluster.guests:
        if name := _tf_members.served_as(greeting.status(address, 1.0)):
            found.append((*name, address))
    return found


def send(cluster: Tasks, message: str = DONE, timeout: float = 5.0) -> None:
    """Tells every server that the job is over.

    A server that cannot be reached has to find out by itself.

    Args:
      cluster: the `tfps.Cluster` whose servers are told.
      message: `DONE`, `LEAVES`, or why the job failed.
      timeout: seconds to wait for all servers together.
    """

    threads = [tell(job, i, address, message, timeout) for job, i, address in servers(cluster)]
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def tell(
    job: str, index: int, address: str, message: str, timeout: float = 5.0
) -> threading.Thread:
    """Starts to send a message to a server, if that can be reached; returns the thread.

    Args:
      job: `worker`, `ps` or `spare`.
      index: of the server's task.
      address: of the server.
      message: see `send`; or `GO`.
      timeout: s that the server may take.
    """

    def run() -> None:
        if not sockets.answers(address, timeout=1.0):
            return
        with tf.Graph().as_default():
            put = queue(job, index).enqueue(message)
            options = tf.compat.v1.RunOptions(timeout_in_ms=int(timeout * 1000))
            try:
                with session(f"grpc://{address}", job, index) as opened:
                    opened.run(put, options=options)
            except tf.errors.OpError:
                pass  # The server died between the question and the message.

    thread = threading.Thread(target=run, name=f"tfps-tells-{job}-{index}", daemon=True)
    thread.start()
    return thread


class Receiver:
    """A server's wait for the end of its job."""

    def __init__(
        self,
        server: tf.distribute.Server,
        cluster: Tasks,
        lease: float,
        host: Callable[[int], str] = lambda ps: "",
    ):
        """Starts to listen for the chief's message.

        Args:
          server: the server of this process.
          cluster: the `tfps.Cluster`, with this process's task.
          lease: s that the chief may be silent; see `ChiefWatch`.
          host: starts the server of a ps of this index here, and returns its address; or "" if it
            cannot.
        """
        self._host = host
        self._lease, self._anew, self._left = lease, False, False
        self._watch: chief_watch.ChiefWatch | None = None
        self._departs = False  # whether this worker waits to be let go
        self._cluster, self._target = cluster, server.target
        self._chief = cluster.spec["chief"][0]
        self._messages: list[str] = []
        # Joining the thread instead would not do: a signal that interrupts it marks the thread as
        # ended (CPython 3.11).
        self._heard = threading.Event()
        self._thread = threading.Thread(target=self._receive, args=(server.target,), daemon=True)
        self._thread.start()

    def _receive(self, target: str) -> None:
        job, index = self._cluster.task_type, self._cluster.task_index
        with tf.Graph().as_default():
            get = queue(job, index).dequeue()
            serves = queue(job, index, "serves").enqueue("")
            told = tf.compat.v1.placeholder(tf.string, [])
            hosts = queue(job, index, "hosts").enqueue(told)
            try:
                # It waits for the message as long as the job lasts.
                with session(target, job, index, limit=None) as opened:
                    opened.run(serves)  # Somebody reads the messages: see `succession`.
                    while (message := opened.run(get).decode()) in (ANEW, LEAVES, GO) or (
                        message.startswith(HOST)
                    ):
                        if message == GO and self._departs:
                            break  # Otherwise it was for the process before this one.
                        if message.startswith(HOST):
                            ps = int(message.removeprefix(HOST))
                            opened.run(hosts, {told: f"{ps} {self._host(ps)}"})
                        self._anew |= message == ANEW
                        self._left |= message == LEAVES
                    self._messages.append(message)
            except tf.errors.OpError as e:
                self._messages.append(f"this server cannot hear the chief: {e.message}")
        self._heard.set()

    def wait(
        self,
        startup_timeout: float,
        orphaned: Callable[[], bool] = lambda: False,
        report: Callable[[str], None] = lambda line: None,
        told: Callable[[], bool] = lambda: False,
    ) -> str | None:
        """Blocks until the job ends.

        Args:
          startup_timeout: seconds that the chief may take to appear.
          orphaned: asked a few times a second whether the process that started this one is gone.
          report: called with a line about the wait, once a minute.
          told: asked a few times a second whether this process was told to end.

        Returns:
          The chief's message: `DONE`, or why the job failed; None if this process was told to end.

        Raises:
          StartupTimeout: the chief did not come.
          ChiefLost: the process that started this one is gone.
          Anew: the chief came, and went without a message or because it was told to end, or goes
            on without this server; or another chief has come.
        """
        started = _now()
        watch = self._watch = chief_watch.ChiefWatch(self._lease, started)
        next_look = next_report = started
        while not self._messages:
            self._heard.wait(_LOOK)
            if self._messages:
                break
            if self._left:  # Nobody is there any more to whom anything could be handed back.
                self._linger()
                raise Anew(f"the chief at {self._chief} was told to end")
            if told():
                return None
            if orphaned():
                raise errors.ChiefLost("the process that started this server is gone")
            if self._anew:
                raise Anew(f"another chief has come to {self._chief}")
            if (now := _now()) < next_look:
                continue
            next_look = now + _POLL
            if why := watch.note(greeting.greet(self._chief, _POLL), _now()):
                raise Anew(f"the chief at {self._chief} {why}")
            if not watch.seen and now - started > startup_timeout:
                raise errors.StartupTimeout(
                    f"the chief at {self._chief} did not come within {startup_timeout:g} s; start "
                    "it, or check 'chief' in TF_CONFIG"
                )
            if not watch.seen and now > next_report:
                report(f"waiting for the chief at {self._chief}, {startup_timeout:g} s at most")
                next_report = now + 60
        self._linger()
        return self._messages[0]

    def hand_back(self, timeout: float) -> bool:
        """Asks the chief to take back what this worker holds; whether the chief has let it go.

        Args:
          timeout: s to wait for that.
        """
        if self._watch is None or not self._watch.seen:
            return False
        deadline, self._departs = time.monotonic() + timeout, True
        job, index = self._cluster.task_type, self._cluster.task_index
        with tf.Graph().as_default():
            put = queue(job, index, "departs").enqueue("")
            try:
                with session(self._target, job, index) as opened:
                    opened.run(put, options=tf.compat.v1.RunOptions(timeout_in_ms=1000))
            except tf.errors.OpError:
                return False
        self._heard.wait(max(0.0, deadline - time.monotonic()))
        return GO in self._messages

    def _linger(self) -> None:
        # The chief still releases what it holds on this server. If the server vanished meanwhile,
        # the chief's last lines on screen would be connection errors.
        deadline = time.monotonic() + _LINGER
        while time.monotonic() < deadline and sockets.answers(self._chief, timeout=1.0):
            time.sleep(0.2)
