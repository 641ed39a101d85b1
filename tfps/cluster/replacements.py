"""Where the part of a parameter server goes whose process does not return.

A task of TensorFlow's cluster is a name, and its address may change while the others live: a lost
ps gets another address, of a server that waits to be used, or of a second server in the process of
a living ps. Its devices keep their names, so nothing that was traced is traced anew.
"""

import threading
from collections.abc import Callable

import tensorflow as tf

from tfps.cluster import failures, greeting, shutdown
from tfps.cluster.loss_policy import LossPolicy
from tfps.cluster.spec import Cluster

# s for which a lost ps itself is waited for, where a spare server is there, and where another ps
# would have to serve both parts from then on.
SPARE_AFTER, SHARE_AFTER = 10.0, 30.0

# s that a server may take to answer.
_ANSWERS = 2.0

# s that a ps may take to start another server.
_STARTS = 20.0


class Replacements:
    """The servers that may take the place of a lost ps."""

    def __init__(self, cluster: Cluster, policy: LossPolicy):
        """Asks nobody yet.

        Args:
          cluster: to which this process is connected.
          policy: says which there are.
        """
        self._cluster, self._policy = cluster, policy
        cluster.guests += [a for a in policy.spare if a not in cluster.guests]

    def find(self, ps: int, gone: float, lost: frozenset[int]) -> str | None:
        """The new address of a lost ps; None if it is still waited for.

        Args:
          ps: index of the ps.
          gone: s for which it has been waited for.
          lost: indices of all ps that are lost.
        """
        if gone >= SPARE_AFTER and (address := self._spare()):
            failures.say(f"ps {ps} has not returned for {gone:.0f} s; {address} takes its place")
            return address
        if self._policy.on_lost_ps == "reshard" and gone >= SHARE_AFTER:
            return self._shared(ps, gone, lost)
        return None

    def _spare(self) -> str | None:
        """A server that answers and is no part of the cluster at present."""
        known, used = self._cluster.started, self._cluster.spec["ps"]
        for address in (*known["ps"], *known.get("spare", ()), *self._cluster.guests):
            unused = address not in used
            if unused and greeting.greet(address, _ANSWERS) is greeting.Answer.ANSWERS:
                return address
        return None

    def _shared(self, ps: int, gone: float, lost: frozenset[int]) -> str | None:
        """Has the server process with the fewest parts start another server."""
        cluster = self._cluster
        living = {a for p, a in enumerate(cluster.spec["ps"]) if p not in lost}
        hosts = [server for server in shutdown.servers(cluster) if server[2] in living]
        for job, index, address in sorted(hosts, key=lambda h: cluster.shared.count(h[2])):
            new = _start_another(job, index, address, ps)
            if new is not None:
                cluster.shared.append(address)
                failures.say(
                    f"ps {ps} has not returned for {gone:.0f} s; {job} {index} takes its part as "
                    f"well, at {new}"
                )
                return new
        return None


def _start_another(job: str, index: int, address: str, ps: int) -> str | None:
    """Has a server process start the server of a lost ps; returns that one's address.

    Args:
      job, index, address: of the process's own task.
      ps: index of the lost ps.

    Returns:
      None if the process cannot, or does not answer.
    """
    found: list[str] = []

    def run() -> None:
        options = tf.compat.v1.RunOptions(timeout_in_ms=int(_STARTS * 1000))
        with tf.Graph().as_default():
            ask = shutdown.queue(job, index).enqueue(f"{shutdown.HOST}{ps}")
            answer = shutdown.queue(job, index, "hosts").dequeue()
            try:
                with shutdown.session(f"grpc://{address}", job, index) as opened:
                    opened.run(ask, options=options)
                    told, new = "", ""
                    while told != str(ps):  # Otherwise it is of a question that was given up.
                        told, _, new = opened.run(answer, options=options).decode().partition(" ")
                    found.append(new)
            except tf.errors.OpError:
                pass  # It is asked again, or another one is.

    return _within(run, found)


def _within(run: Callable[[], None], found: list[str]) -> str | None:
    """Runs something in a thread that may be left behind; returns what it has found."""
    thread = threading.Thread(target=run, name="tfps-asks-a-ps", daemon=True)
    thread.start()
    thread.join(2 * _STARTS)
    return found[0] if found and found[0] else None
