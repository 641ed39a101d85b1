"""A model in the middle of `fit`: after errors, and what hooks may do to it; beside plain Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error
from tests.covering import covering

soak = pytest.mark.soak
DATA = regression(64)
FIT = {"batch_size": 8, "shuffle": False, "verbose": 0}


def compiled(model=None, **compile_args):
    model = model or mlp()
    model.compile("adam", "mse", **compile_args)
    return model


def on_batch_end(function):
    """A callback that calls `function(batch)` after each batch."""
    return keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: function(batch))


@pytest.mark.parametrize(
    "watched", [False, pytest.param(True, marks=soak)], ids=["deferred", "watched"]
)
def test_iterations_after_an_error_of_the_input(connect, watched):
    x, y = DATA

    def batches():
        for i in range(5):
            yield x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]
        raise RuntimeError("the input ends in an error")

    specs = tf.TensorSpec([8, 8]), tf.TensorSpec([8, 1])
    callbacks = [on_batch_end(lambda batch: None)] if watched else []
    model = compiled()
    with pytest.raises(Exception, match="the input ends in an error"):
        tfps.Trainer(model, connect()).fit(
            tf.data.Dataset.from_generator(batches, output_signature=specs),
            verbose=0,
            callbacks=callbacks,
        )
    reference = compiled()
    reference.fit(x[:40], y[:40], **FIT)
    assert int(model.optimizer.iterations) == 5
    assert relative_error(model, reference) < 1e-5


class OwnStep(keras.Sequential):
    """A model with the guide's `train_step`."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply(
            tape.gradient(loss, self.trainable_variables), self.trainable_variables
        )
        return {"loss": loss}


def test_a_traced_own_step_does_not_look_at_weights(connect):
    trainer = tfps.Trainer(compiled(OwnStep(mlp().layers)), connect())
    fetched = []

    def hook(batch):
        if batch == 0:  # The step has been traced in this `fit`.
            links = trainer._session.served.store.copy._links.values()
            for source in {id(v.source): v.source for v in links if not v.is_slot}.values():
                read = source.read
                source.read = lambda i, read=read: fetched.append(i) or read(i)
        fetched.append("hook")

    trainer.fit(*DATA, callbacks=[on_batch_end(hook)], **FIT)
    assert fetched[:8] == ["hook"] * 8
    assert len(fetched) > 8  # At the end everything is fetched.


@pytest.mark.parametrize(
    "before", [True, pytest.param(False, marks=soak)], ids=["freeze", "unfreeze"]
)
def test_trainable_is_changed_in_a_hook(connect, before):
    """As in Keras, the step that has been traced goes on."""
    models = []
    for run in ("keras", "tfps"):
        model = mlp()
        model.layers[0].trainable = before
        compiled(model)

        def change(epoch, logs, model=model):
            if epoch == 1:  # Keras's step is traced in epoch 0.
                model.layers[0].trainable = not before

        callbacks = [keras.callbacks.LambdaCallback(on_epoch_begin=change)]
        fit = model.fit if run == "keras" else tfps.Trainer(model, connect()).fit
        fit(*DATA, epochs=3, validation_data=DATA, callbacks=callbacks, **FIT)
        models.append(model)
    keras_model, mine = models
    assert relative_error(mine, keras_model) < 1e-5


class Largest(keras.metrics.Metric):
    """The largest error so far, which workers carry from batch to batch."""

    def __init__(self):
        super().__init__(name="largest")
        self.largest = self.add_weight(name="largest", initializer="zeros")

    def update_state(self, y, p, sample_weight=None):
        self.largest.assign(tf.maximum(self.largest, tf.reduce_max(tf.abs(y - p))))

    def result(self):
        return self.largest.value


@covering("what, metrics", ["evaluate", "predict"], [(Largest,), ()], strength=1)
def test_predict_and_evaluate_in_a_batch_hook(connect, what, metrics):
    x, y = DATA
    results = []
    for nested in (False, True):
        model = compiled(metrics=[metric() for metric in metrics])
        trainer = tfps.Trainer(model, connect())

        def hook(batch, nested=nested, trainer=trainer):
            if nested and batch == 3:
                inputs = [10 * x] if what == "predict" else [10 * x, 10 * y]
                getattr(trainer, what)(*inputs, batch_size=8, verbose=0)

        history = trainer.fit(x, y, epochs=2, callbacks=[on_batch_end(hook)], **FIT).history
        results.append((model, history))
    (reference, expected), (model, history) = results
    assert relative_error(model, reference) < 1e-6
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "name",
    [
        "on_train_batch_end",
        pytest.param("on_train_begin", marks=soak),
        pytest.param("on_epoch_begin", marks=soak),
    ],
)
def test_a_held_variable_is_assigned_in_a_hook(connect, name):
    strategy, models = connect(), []  # Connecting may make the process's variables anew.
    for run in ("keras", "tfps"):
        model = compiled()
        held = model.trainable_variables[0].value
        members = {name: lambda self, *args, held=held, **logs: held.assign(held / 2)}
        callback = type("Halving", (keras.callbacks.Callback,), members)()
        fit = model.fit if run == "keras" else tfps.Trainer(model, strategy).fit
        fit(*DATA, epochs=2, callbacks=[callback], **FIT)
        models.append(model)
    keras_model, mine = models
    assert relative_error(mine, keras_model) < 1e-5


@pytest.mark.parametrize("is_slot", [pytest.param(False, marks=soak), True], ids=["weight", "slot"])
def test_a_held_variable_is_read_in_batch_hooks(connect, is_slot):
    strategy, seen = connect(), {}
    for run in ("keras", "tfps"):
        model = compiled()
        model.optimizer.build(model.trainable_variables)
        held = (model.optimizer._momentums if is_slot else model.trainable_variables)[0].value
        values = seen[run] = []
        hook = on_batch_end(lambda batch, held=held, values=values: values.append(held.numpy()))
        fit = model.fit if run == "keras" else tfps.Trainer(model, strategy).fit
        fit(*DATA, callbacks=[hook], **FIT)
    np.testing.assert_allclose(seen["tfps"], seen["keras"], rtol=1e-4, atol=1e-6)


def test_only_the_held_variable_is_fetched_for_batch_hooks(connect):
    strategy, captured = connect(), []
    model = compiled()
    held = model.trainable_variables[1].value
    trainer = tfps.Trainer(model, strategy)

    def hook(batch):
        links = trainer._session.served.store.copy._captured
        captured.append([link.variable.path for link in links])

    trainer.fit(*DATA, callbacks=[on_batch_end(hook)], **FIT)
    assert captured == [[model.trainable_variables[1].path]] * 8
    assert held is model.trainable_variables[1].value


def test_a_hook_of_a_batch_predicts_with_kerass_own_predict(connect):
    """Keras synchronizes after each batch, and the servers are busy until training ends."""
    x, y = regression(48)
    inputs = keras.Input([8])
    features = keras.layers.Dense(4)(inputs)
    seen = []
    with (strategy := connect()).scope():
        model = keras.Model(inputs, keras.layers.Dense(1)(features))
        encoder = keras.Model(inputs, features)
        model.compile("sgd", "mse")

    def look(batch, logs):
        predicted = [m.predict(x, verbose=0) for m in (model, encoder)]
        called = [np.asarray(m(x)) for m in (model, encoder)]
        seen.extend(zip(predicted, called, strict=True))

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    tfps.Trainer(model, strategy).fit(x, y, batch_size=16, verbose=0, callbacks=[callback])
    assert len(seen) == 6
    for predicted, called in seen:
        np.testing.assert_allclose(predicted, called, rtol=1e-5)
    assert not np.array_equal(seen[0][0], seen[2][0])
