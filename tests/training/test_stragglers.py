"""One worker is slow: what that costs under each policy.

Steps are made of sleep, so that it is the policy that is measured and not the machine.
"""

import time
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import Counting, watched

HEALTHY, SLOW = 0.08, 0.8  # s
pytestmark = [pytest.mark.timed, pytest.mark.timeout(60)]


def ones(context):
    return tf.data.Dataset.from_tensors((np.ones([1, 1]), np.ones([1, 1]))).repeat()


def run(strategy, policy, seconds, steps):
    """(model, log of the schedule, steps per second) of an epoch after a short first one.

    Args:
      strategy: of three workers.
      policy: the policy.
      seconds: that each worker needs for a step; None: it has no data.
      steps: of all workers together.
    """
    policy, log = watched(policy)
    model = Counting.compiled(keras.optimizers.SGD(1.0))
    trainer = tfps.Trainer(model, strategy, policy)
    dispatcher = trainer._session.calls
    submit = dispatcher.submit

    def slowly(worker, function, tag=None):
        # In the worker's thread on the chief: naps in the servers would share the few
        # threads that TensorFlow has in a process.
        def call():
            if tag is not None:  # No push.
                time.sleep(seconds[worker] or 0)
            return function()

        submit(worker, call, tag)

    def data(context):
        dataset = ones(context)
        return dataset if seconds[context.worker_index] else dataset.take(0)

    dispatcher.submit = slowly
    trainer.fit(data, steps_per_epoch=3, verbose=0)
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    log.clear()
    trainer.fit(data, steps_per_epoch=steps, verbose=0)
    return model, log, trainer.stats["steps_per_second"][0]


def test_asynchronous_workers_lose_no_more_than_the_share_of_the_slow_one(connect):
    strategy = connect(3)
    _, _, healthy = run(strategy, tfps.Async(), [HEALTHY] * 3, 60)
    model, _, slowed = run(strategy, tfps.Async(), [HEALTHY, HEALTHY, SLOW], 60)
    # 2/3 and a tenth of 1/3 remain; in step with the slow one it would be a tenth.
    assert 0.55 < slowed / healthy < 0.9
    np.testing.assert_array_equal(model.w, np.full(4, -60.0))


def intervals(log):
    """s from each round to the next."""
    times = [event[-1] for event in log if event[0] == "due"]
    return np.diff(times)


def test_with_a_backup_rounds_go_on_without_the_slow_one(connect):
    strategy = connect(3)
    _, log, _ = run(strategy, tfps.Sync(), [HEALTHY, HEALTHY, None], 40)
    two = np.median(intervals(log))
    model, log, _ = run(strategy, tfps.Sync(backups=1), [HEALTHY, HEALTHY, SLOW], 60)
    assert np.median(intervals(log)) < 1.3 * two
    _, behind, _ = run(strategy, tfps.Sync(), [HEALTHY, HEALTHY, SLOW], 6)
    assert np.median(intervals(behind)) > 0.9 * SLOW
    # What the slow one computed was dropped, but for the first round and the last.
    rounds = [event[1] for event in log if event[0] == "due"]
    assert {len(shares) for shares in rounds[1:-1]} == {2}
    np.testing.assert_array_equal(model.w, np.full(4, -float(len(rounds))))
    dropped = sum(event[0] == "dropped" for event in log)
    assert sum(map(len, rounds)) + dropped == 60
    assert dropped > 0


@pytest.mark.parametrize("bound", [0, 2])
def test_nobody_is_further_ahead_than_the_bound(connect, bound):
    policy = tfps.BoundedStaleness(bound)
    _, log, _ = run(connect(3), policy, [0.02, 0.02, 0.2], 30)
    done = Counter(dict.fromkeys(range(3), 0))
    gaps = []
    for event, worker, *_ in log:
        if event == "started":
            gaps.append(done[worker] - min(done.values()))
        else:
            done[worker] += 1  # Applied.
    assert max(gaps) == bound
    assert min(done.values()) >= 30 // 3 - bound
