"""An own `train_step` as a function of tensors, without servers."""

# ruff: noqa: B905

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import mlp, regression
from tfps import errors
from tfps.model.own_inspection import inspect_own
from tfps.model.stateless_model import StatelessModel

X, Y = regression(16)
SPEC = (tf.TensorSpec([None, 8]), tf.TensorSpec([None, 1]))


class Net(keras.Sequential):
    """A model whose step is a function of the test's."""

    def train_step(self, data):
        return self.step(*data)


def made(step, **compile_args):
    keras.utils.set_random_seed(1)
    model = Net(mlp().layers)
    model.step = lambda x, y: step(model, x, y)
    model.compile("sgd", "mse", **compile_args)
    return model


def trained(step, **compile_args):
    """(the inspected model, what its step computes on a batch)."""
    program = StatelessModel(made(step, **compile_args))
    inspection = inspect_own(program, SPEC)
    metrics = program.initial_metrics(program.logs)

    @tf.function(autograph=False)
    def compute(batch):
        return program.train(
            [tf.convert_to_tensor(v.value) for v in program.trainable],
            [tf.convert_to_tensor(v.value) for v in program.state],
            metrics,
            tf.constant(0, tf.int64),
            tf.constant(1.0),
            batch,
            [tf.constant(7) for _ in program.counts],
        )

    return program, inspection, compute((tf.constant(X), tf.constant(Y)))


def expected(step):
    """The gradients that plain Keras applies in a step, and its logs."""
    model, applied = made(step), []
    model.optimizer.apply = lambda grads, variables=None: applied.append(list(grads))
    logs = model.step(tf.constant(X), tf.constant(Y))
    return applied[0], logs


def by_list(model, x, y):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x))
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    return {"now": loss}


def by_dict(model, x, y):
    with tf.GradientTape(persistent=True) as tape:
        loss = model.compute_loss(x, y, model(x))
    sources = {v.path: v for v in model.trainable_variables}
    gradients = tape.gradient(loss, sources)
    again = tape.gradient(loss, sources)
    model.optimizer.apply([gradients[p] + again[p] for p in sources], list(sources.values()))
    return {"now": loss}


def watching(model, x, y):
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([v.value for v in model.trainable_variables])
        loss = model.compute_loss(x, y, model(x))
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    return {"now": loss}


def of_watched(model, x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model.layers[0](x))
        with tape.stop_recording():
            model.layers[1](model.layers[0](x))
    variables = tape.watched_variables()
    gradients = tape.gradient(loss, model.layers[0].trainable_variables)
    assert len(variables) >= 2
    model.optimizer.apply_gradients(zip(gradients, model.layers[0].trainable_variables))
    return {"now": loss}


def in_a_loop(model, x, y):
    with tf.GradientTape() as tape:
        _, loss = tf.while_loop(
            lambda i, _: i < 3,
            lambda i, total: (i + 1, total + tf.reduce_mean(tf.square(model(x)))),
            [0, 0.0],
        )
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    return {"now": loss}


def second_order(model, x, y):
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = model.compute_loss(x, y, model(x))
        first = inner.gradient(loss, model.trainable_variables)
        norm = tf.add_n([tf.reduce_sum(tf.square(g)) for g in first])
    gradients = outer.gradient(norm, model.trainable_variables)
    # The last bias is not in the gradient of a square's gradient at the first order.
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    return {"now": norm}


STEPS = [by_list, by_dict, watching, of_watched, in_a_loop, second_order]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.__name__)
def test_gradients_and_logs_are_those_of_keras(step):
    gradients, logs = expected(step)
    program, inspection, result = trained(step)
    mine = [g for g in result.gradients if g is not None]
    theirs = [g for g in gradients if g is not None]
    assert sum(inspection.connected) == len(theirs) == len(mine)
    for a, b in zip(mine, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    (extra,) = result.metrics[len(program.metrics) :]
    np.testing.assert_allclose(extra, logs["now"], rtol=1e-5)


def test_graph_gradients():
    def step(model, x, y):
        loss = model.compute_loss(x, y, model(x))
        variables = model.trainable_variables
        if not tf.executing_eagerly():
            model.optimizer.apply_gradients(zip(tf.gradients(loss, variables), variables))
        return {"now": loss}

    _, _, result = trained(step)
    gradients, _ = expected(by_list)
    for a, b in zip(result.gradients, gradients):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_an_optimizer_that_counts():
    def step(model, x, y):
        by_list(model, x, y)
        return {"count": model.optimizer.iterations, "rate": model.optimizer.learning_rate}

    program, _, result = trained(step)
    assert program.counts
    assert result.metrics[-1].numpy() == 7.0
    metrics = program.results.cast([v.numpy() for v in program.metrics])
    program.model.optimizer.learning_rate = 0.25
    # The rate is the chief's at the time, not the one at which the step was traced.
    assert float(program.logs.result(metrics, [9.0], {})["rate"]) == 0.25
    assert program.logs.result(metrics, [9.0], {})["count"] == 9.0


def test_what_a_step_does_with_variables_decides_where_they_belong():
    hidden = keras.Variable(tf.ones([8, 1]), name="hidden")
    seen = keras.Variable(0, dtype="int32", trainable=False, name="seen")

    def step(model, x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.matmul(x, hidden) - y))
            loss += tf.reduce_mean(tf.square(model.layers[0](x)))
        variables = [hidden, *model.layers[0].trainable_variables]
        model.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        average = model.layers[1].kernel
        average.assign(0.5 * average)
        seen.assign_add(1)
        return {}

    program, inspection, _ = trained(step)
    model = program.model
    assert [v.path for v in program.trainable] == [
        *(v.path for v in (*model.layers[0].weights, model.layers[1].bias)),
        "hidden",
    ]
    assert inspection.connected == [True, True, False, True]
    assert [v.path for v in program.state] == [model.layers[1].kernel.path]
    assert inspection.updated == [True]
    assert [v.path for v in inspection.unlisted] == ["seen"]  # Each worker has its own.
    assert hidden.numpy().all() and int(seen) == 0  # Nothing was written.


def test_a_step_that_fails_leaves_keras_and_tensorflow_as_they_were():
    def step(model, x, y):
        raise KeyError("mine")

    before = (
        tf.GradientTape._push_tape,
        tf.GradientTape.gradient,
        keras.Variable.handle,
        vars(keras.optimizers.Optimizer).get("apply"),
        keras.optimizers.LossScaleOptimizer.apply,
    )
    with pytest.raises(KeyError, match="mine"):
        inspect_own(StatelessModel(made(step)), SPEC)
    assert before == (
        tf.GradientTape._push_tape,
        tf.GradientTape.gradient,
        keras.Variable.handle,
        vars(keras.optimizers.Optimizer).get("apply"),
        keras.optimizers.LossScaleOptimizer.apply,
    )


def test_applied_twice_is_the_mean_twice_with_a_warning():
    def step(model, x, y):
        by_list(model, x, y)
        with tf.GradientTape() as tape:
            loss = 3 * model.compute_loss(x, y, model(x))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)
        return {"now": loss}

    gradients, _ = expected(by_list)
    with pytest.warns(UserWarning, match=r"apply 2 times.* the mean .* as many times"):
        program, _, result = trained(step)
    assert program.num_calls == [2] and set(program.calls) == {(0, 1)}
    for a, b in zip(result.gradients, gradients):
        np.testing.assert_allclose(a, 2 * b, rtol=1e-5, atol=1e-7)


def test_no_gradient_at_all_is_an_error_as_in_keras():
    def step(model, x, y):
        model.optimizer.apply_gradients([(None, v) for v in model.trainable_variables])
        return {}

    with pytest.raises(ValueError, match="No gradients provided"):
        trained(step)


def test_an_assignment_in_a_branch_says_why():
    def step(model, x, y):
        kernel = model.layers[0].kernel
        tf.cond(tf.reduce_sum(x) > 0, lambda: kernel.assign(kernel * 2), lambda: kernel.value)
        return {}

    with pytest.raises(errors.ConfigError, match=r"tf\.where"):
        trained(step)
