"""What every `WorkerStep` promises: one table of all kinds of steps, run through the same laws."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import Counting
from tfps.cluster.devices import worker_device
from tfps.compression import TopK
from tfps.worker.own_values import Own
from tfps.worker.tally import Report

BATCHES = 7
AVERAGE = tfps.ModelAverage()

# (policy, overlap, steps a call)
CASES = {
    "async": (tfps.Async(), 0, 1),
    "async, 3 steps a call": (tfps.Async(), 0, 3),
    "overlap 1, 3 steps a call": (tfps.Async(), 1, 3),
    "overlap 2, 3 steps a call": (tfps.Async(), 2, 3),
    "prefetch, overlap 1": (tfps.Async(), 1, 1),
    "prefetch, overlap 2": (tfps.Async(), 2, 1),
    "sync": (tfps.Sync(), 0, 1),
    "local, each": (tfps.LocalSteps(3, AVERAGE, "each"), 0, 1),
    "local, each, delayed": (tfps.LocalSteps(3, AVERAGE, "each", delay=1), 0, 1),
    "local, rounds": (tfps.LocalSteps(3, AVERAGE), 0, 1),
}


# Another case has the same class of step, and more of it.
SOAK = "async", "overlap 1, 3 steps a call", "local, each"


class Rig:
    """A step, called as the chief calls it, on a model that learns to count batches."""

    def __init__(self, strategy, case):
        self.policy, overlap, steps = CASES[case]
        model = Counting.compiled(keras.optimizers.SGD(1.0), steps_per_execution=steps)
        push = TopK(0.5, min_bytes=0)  # So that there are residuals.
        trainer = tfps.Trainer(model, strategy, self.policy, push=push, overlap=overlap)
        self.session = trainer._session
        ones = tf.ones([BATCHES, 1])
        self.data = tf.data.Dataset.from_tensor_slices((ones, ones)).batch(1)
        feed = self.session.feed(lambda context: self.data, None)
        self.session.prepare(feed, train=True)
        feed.regroup(self.policy.steps_per_call(steps), alike=True)
        side = self.session.state.side(self.policy.exchange, False)
        self.step = self.session.steps.training(side, self.policy, feed)
        self.actors = side.actors()
        self.handles = self.actors.handles(0, 0)
        self.group = feed.group

    def server(self):
        """(the weights on the servers, how many batches the model counted there)."""
        values = self.session.served.store.export().values
        return values[0], int(values[1])

    def epoch(self, data, memory=None):
        """Trains over a dataset; returns (reports, what the worker keeps)."""
        failures = []
        self.actors.start([0], failures.append)
        try:
            return self._epoch(data, memory)
        finally:
            self.actors.stop()
            assert not failures

    def _epoch(self, data, memory):
        reports = []
        with tf.device(worker_device(0)):
            source = iter(data)
            carry, own = self.step.start(self.handles, memory), Own([], [], [self.step.own.blank()])
            while True:
                vector, carry, _ = self.step(
                    self.handles, source, carry, own, self.group, len(reports), 1.0
                )
                reports.append(Report.of(vector, self.step.own.shapes))
                if self.policy.in_rounds and reports[-1].steps:
                    number = 1000 + len(reports)
                    vector, carry = self.step.push(self.handles, carry, number, 1.0, 1, 1.0)
                    reports.append(Report.of(vector, self.step.own.shapes))
                    continue
                if not reports[-1].steps and not reports[-1].taken:
                    break
            vector = self.step.finish(self.handles, carry, 1.0)
            if vector is not None:
                reports.append(Report.of(vector, self.step.own.shapes))
            return reports, self.step.rest(carry)


@pytest.fixture(
    scope="module",
    params=[pytest.param(c, marks=pytest.mark.soak if c in SOAK else []) for c in CASES],
)
def rig(request, connect):
    return Rig(connect(workers=1, ps=2), request.param)


def missing(memory):
    """What the codecs have not sent yet, summed."""
    return sum(float(tf.reduce_sum(t)) for t in tf.nest.flatten(memory.residuals))


def test_every_batch_is_trained_on_once(rig):
    """What the servers have, and what the worker keeps, make up all batches."""
    weights, counted = rig.server()
    reports, memory = rig.epoch(rig.data)
    after, counted_after = rig.server()
    assert counted_after - counted == BATCHES
    np.testing.assert_allclose(np.sum(weights - after) + missing(memory), 4 * BATCHES, rtol=1e-6)
    assert sum(r.steps for r in reports) == sum(r.taken for r in reports) == BATCHES
    assert sum(r.tally.examples for r in reports) == BATCHES
    pushes = sum(r.tally.pushes for r in reports)
    exchanges = -(-BATCHES // 3) if rig.policy.local_steps else BATCHES
    assert pushes == sum(r.tally.updates for r in reports) == exchanges


def test_without_a_batch_nothing_changes(rig):
    before = rig.server()
    reports, _ = rig.epoch(rig.data.take(0))
    after = rig.server()
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1] == after[1]
    for report in reports:
        assert report.steps == report.taken == report.tally.pushes == report.tally.updates == 0
        assert not report.tally.staleness.any()
        assert not any(np.any(change) for change in report.metrics)


def test_the_memory_goes_on(rig):
    """Residuals and the worker's own optimizer are what an epoch begins with, as they were left."""
    _, memory = rig.epoch(rig.data)
    with tf.device(worker_device(0)):
        again = rig.step.rest(rig.step.start(rig.handles, memory))
    tf.nest.map_structure(np.testing.assert_array_equal, again, memory)
    _, after = rig.epoch(rig.data.take(0), memory)
    tf.nest.map_structure(np.testing.assert_array_equal, after, memory)


def test_the_memory_is_all_that_is_left(rig):
    """No parameters, no batch and no push stay on the worker between epochs."""
    _, memory = rig.epoch(rig.data)
    assert memory._fields == ("residuals", "inner")
    residuals = rig.session.served.store.plan.buckets
    assert set(memory.residuals) <= set(range(len(residuals)))
    assert bool(memory.inner) == bool(rig.policy.local_steps)
    for tensor in tf.nest.flatten(memory):
        assert "job:worker" in tensor.backing_device
