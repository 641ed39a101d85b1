"""What it costs to bring bytes from one task to another: processor time of both."""

import time
from collections.abc import Callable

import tensorflow as tf

from tfps.cluster.devices import ps_device, worker_device
from tfps.store.messages import here

# As many tensors of the size of a bucket go over in a call, and such tensors stay on a server.
_TENSORS, _BYTES = 4, 4 << 20

# (worker, ps, …) seconds of processor time so far.
Now = Callable[[], tuple[float, ...]]


def rates(now: Now, seconds: float) -> tuple[float, float]:
    """(sending, receiving): seconds per byte, from the first ps to the first worker and back.

    Args:
      now: processor time of the worker's and the ps's process, first of all.
      seconds: to spend.
    """
    down = _measured(now, ps_device(0), worker_device(0), seconds / 2)
    up = _measured(now, worker_device(0), ps_device(0), seconds / 2)
    # (worker, ps) each: the worker receives what the ps sends, and the other way round.
    return (down[1] + up[0]) / 2, (down[0] + up[1]) / 2


def _measured(now: Now, source: str, target: str, seconds: float) -> tuple[float, float]:
    """Seconds per byte of the worker and of the ps, for tensors that go from one to the other."""
    with tf.device(source):
        held = [tf.Variable(tf.zeros([_BYTES // 4])) for _ in range(_TENSORS)]

    @tf.function(autograph=False)
    def move():
        with tf.device(source):
            read = [tf.identity(v.read_value()) for v in held]
        with tf.device(target):
            return tf.add_n([t[0] for t in here(read)])

    @tf.function(autograph=False)
    def stay():
        with tf.device(source):
            read = [tf.identity(v.read_value()) for v in held]
            small = tf.add_n([t[0] for t in read])
        with tf.device(target):
            return small + 1.0

    moved, calls = _per_call(now, move, seconds * 0.7)
    stayed, _ = _per_call(now, stay, seconds * 0.3)
    del calls
    size = _TENSORS * _BYTES
    return tuple(max(0.0, a - b) / size for a, b in zip(moved, stayed, strict=True))


def _per_call(now: Now, call: Callable[[], tf.Tensor], seconds: float):
    for _ in range(3):
        call().numpy()
    before, begun, calls = now(), time.perf_counter(), 0
    while time.perf_counter() - begun < seconds or calls < 5:
        call().numpy()
        calls += 1
    after = now()
    return [(after[i] - before[i]) / calls for i in range(2)], calls
