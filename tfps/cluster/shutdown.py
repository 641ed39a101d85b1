"""How the chief tells the servers that the job is over, and how they learn that it died.

TensorFlow's servers run until they are killed: nothing in the runtime tells a
worker or a parameter server that its job is done. Here the message takes the
runtime's own road, so no further port is needed: each server process waits for
an element of a queue on its own device, through a session of its own, and the
chief opens a session to that server and puts one in. An element that never
comes is told from a chief that died by asking the chief's address now and then.
"""

import threading
import time

import tensorflow as tf

from tfps import errors
from tfps.cluster import sockets

DONE = "done"

_POLL = 2.0  # s between two looks at the chief's address
_LOST_AFTER = 10.0  # s without an answer until the chief counts as dead
_LINGER = 3.0  # s that a server waits for the chief's own exit after its farewell


def _queue(job: str, index: int) -> tf.queue.FIFOQueue:
    with tf.device(f"/job:{job}/task:{index}/device:CPU:0"):
        return tf.queue.FIFOQueue(8, [tf.string], shapes=[[]], shared_name="tfps_farewell")


def _session(target: str, job: str, index: int) -> tf.compat.v1.Session:
    # The filter keeps the session from waiting for the other tasks of the cluster.
    config = tf.compat.v1.ConfigProto(device_filters=[f"/job:{job}/task:{index}"])
    return tf.compat.v1.Session(target, config=config)


def send(cluster, message: str = DONE, timeout: float = 5.0) -> None:
    """Tells every worker and ps that the job is over.

    Servers that cannot be reached are left to find out by themselves.

    Args:
      cluster: the `tfps.Cluster` whose servers to tell.
      message: `DONE`, or the reason why the job failed.
      timeout: seconds to wait for all of them.
    """

    def tell(job, index, address):
        if not sockets.answers(address, timeout=1.0):
            return
        with tf.Graph().as_default():
            put = _queue(job, index).enqueue(message)
            options = tf.compat.v1.RunOptions(timeout_in_ms=int(timeout * 1000))
            try:
                with _session(f"grpc://{address}", job, index) as session:
                    session.run(put, options=options)
            except tf.errors.OpError:
                pass  # It died between the question and the message.

    threads = [
        threading.Thread(target=tell, args=(job, i, address), daemon=True)
        for job in ("worker", "ps")
        for i, address in enumerate(cluster.spec[job])
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


class Receiver:
    """A server's wait for the end of its job."""

    def __init__(self, server: tf.distribute.Server, cluster):
        self._cluster = cluster
        self._chief = cluster.spec["chief"][0]
        self._messages: list[str] = []
        self._thread = threading.Thread(target=self._receive, args=(server.target,), daemon=True)
        self._thread.start()

    def _receive(self, target: str) -> None:
        job, index = self._cluster.task_type, self._cluster.task_index
        with tf.Graph().as_default():
            get = _queue(job, index).dequeue()
            try:
                with _session(target, job, index) as session:
                    self._messages.append(session.run(get).decode())
            except tf.errors.OpError as e:
                self._messages.append(f"this server cannot hear the chief: {e.message}")

    def wait(self, startup_timeout: float, orphaned=lambda: False, report=lambda line: None) -> str:
        """Blocks until the job ends.

        Args:
          startup_timeout: seconds that the chief may take to appear.
          orphaned: asked every second; true means that the process that
            started this one is gone.
          report: called with a line about the wait now and then.

        Returns:
          The chief's message: `DONE`, or why the job failed.

        Raises:
          StartupTimeout: the chief never came.
          ChiefLost: it came and went without a farewell.
        """
        started = last_seen = time.monotonic()
        next_look = next_report = started
        seen = False
        while not self._messages:
            self._thread.join(min(1.0, _POLL))
            now = time.monotonic()
            if self._messages:
                break
            if orphaned():
                raise errors.ChiefLost("the process that started this server is gone")
            if now < next_look:
                continue
            next_look = now + _POLL
            if sockets.answers(self._chief, timeout=2.0):
                seen, last_seen = True, time.monotonic()
            elif seen and now - last_seen > _LOST_AFTER:
                raise errors.ChiefLost(
                    f"the chief at {self._chief} died: no answer for {now - last_seen:.0f} s and "
                    "no farewell; start the job again"
                )
            elif not seen and now - started > startup_timeout:
                raise errors.StartupTimeout(
                    f"the chief at {self._chief} did not come within {startup_timeout:g} s; start "
                    "it, or check 'chief' in TF_CONFIG"
                )
            elif not seen and now > next_report:
                report(f"waiting for the chief at {self._chief}")
                next_report = now + 60
        self._linger()
        return self._messages[0]

    def _linger(self) -> None:
        # The chief still releases what it holds here; a server that vanished
        # under it would make its last lines on screen connection errors.
        deadline = time.monotonic() + _LINGER
        while time.monotonic() < deadline and sockets.answers(self._chief, timeout=1.0):
            time.sleep(0.2)
