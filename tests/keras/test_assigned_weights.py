"""Layers and steps that assign a variable which is trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error
from tests.keras.beside_keras import fit_both, sequential


class Masked(keras.layers.Layer):
    """A dense layer that sets half of its kernel to zero before it uses it, as in PixelCNN."""

    def build(self, shape):
        self.dense = keras.layers.Dense(4)
        self.dense.build(shape)
        self.mask = np.arange(shape[-1] * 4).reshape(shape[-1], 4) % 2

    def call(self, x):
        self.dense.kernel.assign(self.dense.kernel * self.mask)
        return self.dense(x)


def with_first(layer, optimizer=lambda: keras.optimizers.Adam(1e-2), **compile_args):
    """What makes a model of a layer and another one, compiled."""

    def make():
        model = keras.Sequential([keras.Input([8]), layer(), keras.layers.Dense(1)])
        model.compile(optimizer(), "mse", **{"jit_compile": False, **compile_args})
        return model

    return make


def normalized():
    return keras.layers.SpectralNormalization(keras.layers.Dense(4), power_iterations=2)


@pytest.mark.parametrize("eager", [False, pytest.param(True, marks=pytest.mark.soak)])
@pytest.mark.parametrize("layer", [Masked, normalized])
def test_a_layer_that_assigns_its_kernel(connect, recwarn, layer, eager):
    make = with_first(layer, run_eagerly=eager)
    mine, theirs = fit_both(connect, make, *regression(64))
    x, _ = regression(64)
    np.testing.assert_allclose(mine(x), theirs(x), rtol=1e-4, atol=1e-6)
    assert not [w for w in recwarn if "assigns" in str(w.message)]


def test_a_split_kernel_with_decay_and_loss_scaling(connect):
    def optimizer():
        return keras.optimizers.LossScaleOptimizer(
            keras.optimizers.AdamW(1e-2, weight_decay=0.1), initial_scale=8.0
        )

    strategy = connect(1, 2, tfps.partitioners.FixedShards(2))
    x, y = regression(64)
    models = []
    for train in (lambda m: tfps.Trainer(m, strategy, push=tfps.compression.Int8()).fit, None):
        keras.utils.set_random_seed(1)
        model = with_first(Masked, optimizer)()
        fit = train(model) if train else model.fit
        fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        models.append(model.layers[0].dense.kernel.numpy())
    # The other kernel went through the codec, this one did not.
    np.testing.assert_allclose(models[0] != 0, models[1] != 0)
    np.testing.assert_allclose(*models, atol=0.03)


@pytest.mark.soak
def test_rounds_and_local_steps(connect):
    x, y = regression(64)
    make = with_first(normalized, lambda: keras.optimizers.SGD(0.05))
    for policy in (tfps.Sync(), tfps.LocalSteps(1, outer=keras.optimizers.SGD(1.0))):
        models = []
        for workers in (2, 0):
            keras.utils.set_random_seed(1)
            model = make()
            fit = {"shuffle": False, "verbose": 0, "epochs": 3}
            if workers:
                trainer = tfps.Trainer(model, connect(workers), consistency=policy)
                trainer.fit(x, y, batch_size=16, **fit)
            else:
                model.fit(x, y, batch_size=32, **fit)
            models.append(model)
        assert relative_error(*models) < 1e-5


def test_several_workers_normalize_once(connect):
    """Two workers that saw the same kernel must not normalize it twice."""
    x, y = regression(640)
    model = with_first(normalized, lambda: keras.optimizers.SGD(1e-3))()
    layer = model.layers[0]
    layer.layer.kernel.assign(layer.layer.kernel * 50.0)
    tfps.Trainer(model, connect(2)).fit(x, y, batch_size=16, epochs=2, verbose=0)
    largest = np.linalg.svd(layer.layer.kernel.numpy(), compute_uv=False)[0]
    assert 0.8 < largest < 1.3


class Clipping(keras.Model):
    """Sets bounds to its weights before it differentiates, as a critic may."""

    def train_step(self, data):
        x, y = data
        for v in self.trainable_variables:
            v.assign(tf.clip_by_value(v, -0.3, 0.3))
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"own": loss}


@pytest.mark.parametrize("layer", [None, normalized])
def test_an_own_step_that_assigns_and_applies(connect, layer):
    def own():
        inputs = keras.Input([8])
        model = Clipping(inputs, keras.layers.Dense(1)(layer()(inputs)))
        model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
        return model

    make = sequential(lambda layers: Clipping(layers[0], _through(layers)))
    fit_both(connect, own if layer else make, *regression(64))


def _through(layers):
    x = layers[0]
    for layer in layers[1:]:
        x = layer(x)
    return x


def test_others_push_one_part(connect):
    x, y = regression(64)
    model = mlp()
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect())
    trainer.fit(x, y, batch_size=16, verbose=0)
    assert trainer.stats["push_bytes_per_step"][0] == 4 * model.count_params()


class Prototypes(keras.layers.Layer):
    """Follows the mean of its input in a trained weight that the loss does not depend on."""

    def build(self, shape):
        self.mean = self.add_weight(shape=shape[1:], initializer="zeros", name="mean")

    def call(self, x):
        self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, 0))
        return x


class OwnStep(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


FOLLOWING = {
    "graph": {},
    "eager": {"run_eagerly": True},
    "own": {},
    "decayed": {"optimizer": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.5)},
}


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", FOLLOWING)
def test_what_is_assigned_without_a_gradient_stays(connect, name):
    make = with_first(Prototypes, **FOLLOWING[name])
    if name == "own":

        def make():
            inputs = keras.Input([8])
            model = OwnStep(inputs, keras.layers.Dense(1)(Prototypes()(inputs)))
            model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
            return model

    mine, theirs = fit_both(connect, make, *regression(64))
    for ours, keras_own in zip(mine.weights, theirs.weights, strict=True):
        assert np.any(ours.numpy())
        np.testing.assert_allclose(ours.numpy(), keras_own.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    "policy",
    [tfps.Sync(), *(pytest.param(p, marks=pytest.mark.soak) for p in (tfps.LocalSteps(2),))],
)
def test_what_is_assigned_without_a_gradient_stays_in_rounds(connect, policy):
    x, y = regression(64)
    x = x + 1.0
    model = with_first(Prototypes)()
    trainer = tfps.Trainer(model, connect(2), consistency=policy)
    trainer.fit(x, y, batch_size=16, epochs=8, verbose=0)
    share = 1 - 0.9 ** (8 * 4 // 2)  # Of two workers' steps, each round or exchange keeps one.
    np.testing.assert_allclose(model.layers[0].mean.numpy(), x.mean(0) * share, atol=0.25)
