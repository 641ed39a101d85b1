"""What the graph of a metric's update says about its state."""

import inspect
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfps.model.combination import Combination, combinations
from tfps.model.metric_merging import merging_of
from tfps.model.stateless_model import StatelessModel

ops = keras.ops
SUM, MAXIMUM, MINIMUM = Combination.SUM, Combination.MAXIMUM, Combination.MINIMUM
UNKNOWN = Combination.UNKNOWN

UPDATES = {
    "assign_add": (lambda v, x: v.assign_add(ops.sum(x)), SUM),
    "assign_sub": (lambda v, x: v.assign_sub(ops.sum(x)), SUM),
    "assign of a sum": (lambda v, x: v.assign(v + ops.sum(x)), SUM),
    "turned around": (lambda v, x: v.assign(ops.sum(x) + v), SUM),
    "twice": (lambda v, x: (v.assign_add(x[0]), v.assign_add(x[1])), SUM),
    "add_n": (lambda v, x: v.assign(tf.add_n([x[0], v.value, x[1]])), SUM),
    "sometimes": (lambda v, x: v.assign(ops.where(x[0] > 0, v + x[0], v)), SUM),
    "in double precision": (
        lambda v, x: v.assign(tf.cast(tf.cast(v.value, "float64") + 1, "float32")),
        SUM,
    ),
    "not at all": (lambda v, x: None, SUM),
    "maximum": (lambda v, x: v.assign(ops.maximum(v, ops.max(x))), MAXIMUM),
    "minimum": (lambda v, x: v.assign(ops.minimum(ops.min(x), v)), MINIMUM),
    "where greater": (lambda v, x: v.assign(ops.where(x[0] > v, x[0], v)), MAXIMUM),
    "where not less": (lambda v, x: v.assign(ops.where(v.value < x[0], v, x[0])), MINIMUM),
    "where less": (lambda v, x: v.assign(ops.where(v.value < x[0], x[0], v)), MAXIMUM),
    "latest": (lambda v, x: v.assign(x[0]), UNKNOWN),
    "moving average": (lambda v, x: v.assign(0.9 * v + 0.1 * x[0]), UNKNOWN),
    "doubled": (lambda v, x: v.assign(v + v), UNKNOWN),
    "product": (lambda v, x: v.assign(v * x[0]), UNKNOWN),
    "sum, then maximum": (lambda v, x: v.assign(ops.maximum(v + x[0], x[1])), UNKNOWN),
    "as far as a bound": (lambda v, x: v.assign_add(ops.where(v.value > 3, 0.0, 1.0)), UNKNOWN),
    "cut off": (lambda v, x: v.assign(tf.cast(tf.cast(v + x[0], "int32"), "float32")), UNKNOWN),
}  # fmt: skip


def found(update, count=1):
    """What the update of variables by a batch x, float32 [2], looks like."""
    variables = [keras.Variable(0.0) for _ in range(count)]
    result = []

    @tf.function(autograph=False)
    def trace(before, x):
        with keras.StatelessScope(zip(variables, before, strict=True)) as scope:
            update(*variables, x)
        after = [scope.get_current_value(v) for v in variables]
        result.extend(combinations(before, after))

    trace.get_concrete_function([tf.TensorSpec([])] * count, tf.TensorSpec([2]))
    return result


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_shows_what_it_is(name):
    update, expected = UPDATES[name]
    assert found(update) == [expected]


def test_several_variables():
    def update(total, best, mean, x):
        total.assign_add(x[0])
        best.assign(ops.maximum(best, x[0]))
        mean.assign(total / 2.0)

    assert found(update, 3) == [SUM, MAXIMUM, UNKNOWN]


def test_a_sum_of_another_variable_is_none():
    assert found(lambda a, b, x: (a.assign(b + x[0]), b.assign_add(1.0)), 2) == [UNKNOWN, SUM]


# Metrics that need arguments, and targets and outputs that suit them.
_ARGUMENTS = {
    "MeanMetricWrapper": {"fn": lambda y, p: ops.abs(y - p)},
    "MeanIoU": {"num_classes": 2},
    "IoU": {"num_classes": 2, "target_class_ids": [0]},
    "OneHotIoU": {"num_classes": 2, "target_class_ids": [0]},
    "OneHotMeanIoU": {"num_classes": 2},
    "BinaryIoU": {},
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.5},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
    "MeanRelativeError": {"normalizer": [1.0, 1.0]},
}


def metrics_of_keras():
    classes = dict(inspect.getmembers(keras.metrics, inspect.isclass))
    return {n: c for n, c in classes.items() if issubclass(c, keras.Metric) and n != "Metric"}


@pytest.mark.parametrize("name", metrics_of_keras())
def test_the_states_of_keras_own_metrics_are_sums(name):
    """So no trace is needed where a model has no other metrics."""
    metric = metrics_of_keras()[name](**_ARGUMENTS.get(name, {}))
    y, p = np.array([[0.0, 1.0], [1.0, 0.0]], "float32"), np.full([2, 2], 0.5, "float32")
    if name in ("Mean", "Sum"):
        batch = (p,)
    elif name in ("MeanIoU", "IoU"):
        batch = y[0], y[1]
    else:
        batch = y[:, :1] if "Sparse" in name else y, p
    metric(*batch)
    metric.reset_state()
    result = []

    @tf.function(autograph=False)
    def trace(before, *batch):
        with keras.StatelessScope(zip(metric.variables, before, strict=True)) as scope:
            metric.update_state(*batch)
        after = [scope.get_current_value(v) for v in metric.variables]
        result.extend(combinations(before, after))

    specs = [tf.TensorSpec(v.shape, v.dtype) for v in metric.variables]
    trace.get_concrete_function(specs, *batch)
    assert result and set(result) == {SUM}


class Metric(keras.Metric):
    """A metric of one variable of its own."""

    def __init__(self, update, **variable):
        super().__init__(name="own")
        self.update = update
        self.v = self.add_variable(shape=(), initializer="zeros", name="v", **variable)

    def update_state(self, y, p, sample_weight=None):
        self.update(self.v, ops.reshape(p, [-1]))

    def result(self):
        return self.v


def merging(metric, train=True, **compile_args):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2)])
    model.compile("sgd", "mse", metrics=[metric], **compile_args)
    spec = tf.TensorSpec([3, 2])
    model._symbolic_build(data_batch=(spec, spec))
    return merging_of(StatelessModel(model), (spec, spec), train)


@pytest.mark.parametrize("train", [True, False])
def test_metrics_are_additive_if_all_are_sums(train):
    assert merging("mae", train).additive
    assert merging(Metric(UPDATES["assign_add"][0]), train).additive
    assert not merging(Metric(UPDATES["maximum"][0]), train).additive
    assert not merging(Metric(UPDATES["assign_add"][0], aggregation="mean"), train).additive


def test_what_cannot_be_merged_is_warned_of():
    latest = UPDATES["latest"][0]
    with pytest.warns(UserWarning, match=r"own/v is no sum.*2 workers.*merge_state"):
        merging(Metric(latest)).warn(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merging(Metric(latest)).warn(1)
        merging(Metric(latest, aggregation="only_first_replica")).warn(2)
        merging(Metric(UPDATES["minimum"][0])).warn(2)
