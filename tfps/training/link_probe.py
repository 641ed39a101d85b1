"""How fast the links between workers and parameter servers are, measured through them."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfps.cluster.calls import WorkerCalls
from tfps.cluster.devices import ps_device, worker_device
from tfps.store.messages import here

# Bytes that are sent at once: four times as many until they take long enough, or the most.
_LEAST, _MOST = 256 << 10, 16 << 20

# s: a transfer takes long enough if it takes this much longer than an empty one.
_LONG = 0.03

# Workers that are asked, one after the other; each has a link of its own.
_ASKED = 4

# Of repeated measurements the shortest counts: nothing makes a link faster than it is.
_TIMES = 3


class Links(NamedTuple):
    """Of the links between workers and ps, as a program sees them.

    Attributes:
      down, up: bytes in a second, from a ps to a worker and back; the slowest worker's.
      latency: seconds of a message.
    """

    down: float
    up: float
    latency: float


def measure(calls: WorkerCalls, num_ps: int) -> Links | None:
    """Measures the links of some workers, one after the other, while nothing else is sent.

    Args:
      calls: to the workers; none is under way.
      num_ps: number of parameter servers.

    Returns:
      The links; None if no worker is there.

    Raises:
      TaskLost: a ps is gone.
    """
    found = []
    for worker in sorted(calls.living)[:_ASKED]:
        answers = calls.run_on_each(lambda w: _of(w, w % num_ps), [worker])
        found += [one for one in answers if one is not None]
    if not found:
        return None
    return Links(
        min(one.down for one in found),
        min(one.up for one in found),
        max(one.latency for one in found),
    )


def _of(worker: int, ps: int) -> Links:
    """The links of a worker, measured with one ps; called on the worker's thread."""
    down, empty = _rate(ps_device(ps), worker_device(worker))
    up, _ = _rate(worker_device(worker), ps_device(ps))
    # There and back, for the call itself and for what it asks of the other task.
    return Links(down, up, empty / 4)


def _rate(source: str, target: str) -> tuple[float, float]:
    """(bytes in a second, seconds of an empty transfer) from one task to another."""
    size, empty = _LEAST, _shortest(_transfer(source, target, 1))
    while True:
        taken = _shortest(_transfer(source, target, size)) - empty
        if taken > _LONG or size >= _MOST:
            return size / max(taken, 1e-6), empty
        size *= 4


def _transfer(source: str, target: str, size: int) -> Callable[[], Any]:
    with tf.device(source):
        # Random, so that nothing on the way can shorten it.
        held = tf.random.stateless_uniform([size], [1, 2], 0, 256, tf.int32)
        held = tf.cast(held, tf.uint8)

    @tf.function(autograph=False)
    def move(held):
        with tf.device(target):
            return here([held])[0][0] + here([held])[0][-1]

    def call():
        with tf.device(target):
            return move(held).numpy()

    return call


def _shortest(call: Callable[[], Any]) -> float:
    call()
    found = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found)
