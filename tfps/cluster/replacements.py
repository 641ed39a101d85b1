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
        for address in (*known["ps"], *known.get("spare", ()), *self._policy.spare):
            unused = address not in used
            if unused and greeting.greet(address, _ANSWERS) is greeting.Answer.ANSWERS:
                return address
        return None

    def _shared(self, ps: int, gone: float, lost: frozenset[int]) -> str | None:
        """Has the ps with the fewest parts start another server."""
        parts = self._cluster.spec["ps"]
        known = self._cluster.started["ps"]
        hosts = {p: known[p] for p in range(len(known)) if p not in lost and parts[p] == known[p]}
        loads = {p: self._cluster.shared.count(p) for p in hosts}
        for host in sorted(hosts, key=lambda p: (loads[p], p)):
            address = _start_another("ps", host, hosts[host], ps)
            if address is not None:
                self._cluster.shared.append(host)
                failures.say(
                    f"ps {ps} has not returned for {gone:.0f} s; ps {host} takes its part as well, "
                    f"at {address}"
                )
                return address
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
                    found.append(opened.run(answer, options=options).decode())
            except tf.errors.OpError:
                pass  # It is asked again, or another one is.

    return _within(run, found)


def _within(run: Callable[[], None], found: list[str]) -> str | None:
    """Runs something in a thread that may be left behind; returns what it has found."""
    thread = threading.Thread(target=run, name="tfps-asks-a-ps", daemon=True)
    thread.start()
    thread.join(2 * _STARTS)
    return found[0] if found and found[0] else None
