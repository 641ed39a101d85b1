"""The loops of real servers, the lives of workers, and what the chief is told."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.store.rig import Rig
from tfps import _tf
from tfps.cluster.devices import worker_device
from tfps.store import mailbox
from tfps.store.actors import Actors, Told
from tfps.store.push import Push
from tfps.store.tables import Ids


class Sending:
    """Pushes of ones, with a life and a number.

    Attributes:
      actors: of two ps, whose loops run.
    """

    def __init__(self, strategy):
        self.rig = rig = Rig(strategy, keras.optimizers.SGD(0.1))
        pusher = rig.pusher

        def push(handles, unit, repeats):
            gradients = [tf.ones(s.shape) for s in rig.store.plan.specs[:3]]
            if rig.aggregation.optimizer.by_rows:
                gradients[0] = gradients[0][:1]
            state = [tf.zeros([5]), tf.constant(0)]
            old = [*state, tf.zeros([2, 2])]
            updates = pusher.pack_updates([*gradients, None], old, [*state, None])
            payloads, rows, _ = pusher.encode(
                updates,
                {0: Ids.of([tf.constant([0])])},
                pusher.initial_residuals(),
                tf.zeros([2], tf.int32),
                tf.constant(True),
            )
            versions, live = tf.zeros([2], tf.int64), tf.constant(True)
            sent = Push(payloads, rows, versions, unit, live, live, tf.constant(1.0))
            return pusher.push(handles, sent, tf.constant(0.1), repeats=repeats).updated

        self._push = tf.function(push, autograph=False)
        number = tf.TensorSpec([], tf.int64)
        self._push.get_concrete_function(pusher.handles(), number, number)
        self.failures = []
        self.actors = Actors(pusher)
        self.actors.start([0, 0], self.failures.append)

    def push(self, worker, life, unit, has=None):
        repeats = 0 if has is None else mailbox.repeats_of(has)
        with tf.device(worker_device(worker)):
            handles = self.actors.handles(worker, life)
            numbers = tf.constant(unit, tf.int64), tf.constant(repeats, tf.int64)
            return bool(self._push(handles, *numbers))

    def versions(self):
        """How many updates each ps has made."""
        return [int(v.numpy()) for v in self.rig.store.versions]


@pytest.fixture
def sending(connect):
    one = Sending(connect(2, 2))
    yield one
    one.actors.stop()
    assert not one.failures


def test_a_fence_tells_what_each_ps_has(sending):
    assert sending.actors.fence(1, 1) == dict.fromkeys((0, 1), Told(-1, -1, 0))
    sending.push(0, 0, 7)
    sending.push(0, 0, 8)
    sending.push(0, 0, 3, has=[])
    assert sending.actors.fence(0, 1) == dict.fromkeys((0, 1), Told(8, 3, 0))
    # The next life begins with nothing.
    assert sending.actors.fence(0, 2) == dict.fromkeys((0, 1), Told(-1, -1, 0))


def test_a_masked_ps_ignores_a_repeat_and_notes_it(sending):
    assert sending.push(0, 0, 1)
    assert not sending.push(1, 0, 1, has=[0])  # Ps 0, which says so, has it.
    assert sending.versions() == [1, 2]
    assert sending.actors.fence(1, 1) == dict.fromkeys((0, 1), Told(-1, 1, 0))


def test_a_life_that_is_over_changes_nothing(sending):
    handles = sending.actors.handles(0, 0)
    sending.push(0, 0, 1)
    sending.actors.fence(0, 1)
    before = [np.array(v) for v in sending.versions()]
    late = _tf.own_executor(), tf.device(worker_device(0))
    with pytest.raises(tf.errors.OpError), late[0], late[1]:
        # It thaws, and sends with what it had.
        sending._push(handles, tf.constant(2, tf.int64), tf.constant(0, tf.int64))
    told = sending.actors.fence(0, 2)
    assert sending.versions() == before
    assert max(one.refused for one in told.values()) >= 1
    assert sending.push(0, 2, 3)
