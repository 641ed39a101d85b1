"""What an own `train_step` applies: changed gradients, several optimizers, and what is refused."""

# ruff: noqa: B905

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error
from tests.keras.beside_keras import fit_both, sequential

o = keras.optimizers


class Clipped(keras.Sequential):
    """Changes the gradients before it applies them, and a subset alone."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.layers[-1].trainable_variables
        gradients = tape.gradient(scaled, variables)
        norms = [tf.norm(g) for g in gradients]
        gradients, norm = tf.clip_by_global_norm(gradients, 0.01)
        step = tf.cast(self.optimizer.iterations, tf.float32)
        gradients = [g * (1 + step) for g in gradients]
        self.optimizer.apply(gradients, variables)
        del tape
        return {"norm": norm, "norms": tf.add_n(norms), "step": step, "loss_now": loss}


def test_gradients_changed_by_hand(connect):
    fit_both(connect, sequential(Clipped, optimizer=lambda: o.SGD(0.1)), *regression(160))


REFUSED = {
    "under a tf.cond": lambda self, gradients, variables: tf.cond(
        tf.constant(True),
        lambda: self.optimizer.apply_gradients(zip(gradients, variables)),
        lambda: self.optimizer.iterations.value,
    ),
    "which is no keras.Variable": lambda self, gradients, variables: self.optimizer.apply_gradients(
        [(gradients[0], self.native)]
    ),
    "after it has applied": lambda self, gradients, variables: (
        self.optimizer.apply_gradients(zip(gradients, variables)),
        variables[0].assign(tf.clip_by_value(variables[0], -1.0, 1.0)),
    ),
    "belongs to an optimizer": lambda self, gradients, variables: (
        self.optimizer.learning_rate.assign(0.5)
    ),
    "let one optimizer": lambda self, gradients, variables: (
        self.optimizer.apply_gradients(zip(gradients, variables)),
        self.other.apply_gradients(zip(gradients, variables)),
    ),
    "returned a list": lambda self, gradients, variables: [1.0],
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_what_cannot_be_split_says_why(connect, message):
    strategy = connect()

    class Refused(keras.Sequential):
        def __init__(self, *args):
            super().__init__(*args)
            self.native = tf.Variable(tf.zeros([8, 16]))
            self.other = o.SGD(0.1)

        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self(data[0]))
            variables = self.trainable_variables
            result = REFUSED[message](self, tape.gradient(loss, variables), variables)
            return result if isinstance(result, list) else {"now": loss}

    model = sequential(Refused)()
    with pytest.raises(tfps.ConfigError, match=message):
        tfps.Trainer(model, strategy).fit(*regression(32), verbose=0)


class GAN(keras.Model):
    """The guide's GAN: two optimizers, each applied in its turn."""

    def __init__(self):
        super().__init__()
        self.discriminator = mlp(inputs=4, units=8)
        self.generator = mlp(inputs=2, units=8, outputs=4)
        self.d_loss_tracker = keras.metrics.Mean(name="d_loss")
        self.g_loss_tracker = keras.metrics.Mean(name="g_loss")

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile(jit_compile=False)
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

    def discriminate(self, real, noise):
        n = tf.shape(real)[0]
        images = tf.concat([self.generator(noise), real], axis=0)
        labels = tf.concat([tf.ones((n, 1)), tf.zeros((n, 1))], axis=0)
        variables = self.discriminator.trainable_weights
        with tf.GradientTape() as tape:
            loss = self.loss_fn(labels, self.discriminator(images))
        self.d_loss_tracker.update_state(loss)
        return tape.gradient(loss, variables), variables

    def generate(self, noise):
        variables = self.generator.trainable_weights
        with tf.GradientTape() as tape:
            predictions = self.discriminator(self.generator(noise))
            loss = self.loss_fn(tf.zeros_like(predictions), predictions)
        self.g_loss_tracker.update_state(loss)
        return tape.gradient(loss, variables), variables

    def train_step(self, data):
        real, noise = data[:, :4], data[:, 4:6]
        self.d_optimizer.apply_gradients(zip(*self.discriminate(real, noise)))
        self.g_optimizer.apply_gradients(zip(*self.generate(noise)))
        return {
            "d_loss": self.d_loss_tracker.result(),
            "g_loss": self.g_loss_tracker.result(),
            "count": self.g_optimizer.iterations,
        }


class Simultaneous(GAN):
    """The same with both gradients computed before any of them is applied."""

    def train_step(self, data):
        real, noise = data[:, :4], data[:, 4:6]
        first = self.discriminate(real, noise)
        second = self.generate(noise)
        count = tf.identity(self.g_optimizer.iterations.value)
        self.d_optimizer.apply_gradients(zip(*first))
        self.g_optimizer.apply_gradients(zip(*second))
        return {
            "d_loss": self.d_loss_tracker.result(),
            "g_loss": self.g_loss_tracker.result(),
            "count": count,
        }


def gan(cls):
    keras.utils.set_random_seed(1)
    model = cls()
    model.compile(
        o.Adam(1e-2, clipnorm=0.1),
        o.SGD(0.05, momentum=0.9),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    return model


def test_gan(connect):
    strategy = connect()
    x, _ = regression(160)
    fit = {"batch_size": 16, "shuffle": False, "verbose": 0, "epochs": 2}
    model, reference = gan(GAN), gan(Simultaneous)
    trainer = tfps.Trainer(model, strategy)
    mine = trainer.fit(x, **fit).history
    theirs = reference.fit(x, **fit).history
    assert relative_error(model, reference) < 1e-5
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-4, err_msg=name)
    assert int(model.d_optimizer.iterations) == int(model.g_optimizer.iterations) == 20
    # They have their state, and plain Keras goes on with it.
    for one, other in zip(
        (model.d_optimizer, model.g_optimizer), (reference.d_optimizer, reference.g_optimizer)
    ):
        for a, b in zip(one.variables, other.variables, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=a.path)


def test_the_first_apply_of_a_gan_is_that_of_keras(connect):
    strategy = connect()
    x, _ = regression(16)
    model, reference = gan(GAN), gan(GAN)
    for one in (model, reference):
        fit = tfps.Trainer(model, strategy).fit if one is model else reference.fit
        fit(x, batch_size=16, verbose=0)
    assert relative_error(model.discriminator, reference.discriminator) < 1e-6


class Centralized(o.SGD):
    """Changes the gradients in `apply_gradients`, which only a step calls."""

    def apply_gradients(self, grads_and_vars):
        centred = [
            (g - tf.reduce_mean(g, axis=0, keepdims=True) if len(g.shape) > 1 else g, v)
            for g, v in grads_and_vars
        ]
        return super().apply_gradients(centred)


def test_an_optimizer_with_its_own_apply_gradients(connect):
    make = sequential(keras.Sequential, lambda: Centralized(0.1))
    fit_both(connect, make, *regression(96))
