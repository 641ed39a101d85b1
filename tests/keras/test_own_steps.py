"""Models with a `train_step` of their own, beside plain Keras.

The models are written as Keras's guides and examples write them.
"""

# ruff: noqa: B905

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tests.keras.beside_keras import fit_both, sequential

o = keras.optimizers


class OneTape(keras.Sequential):
    """The guide's example: one tape, one optimizer, metrics by hand."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}


@pytest.mark.soak  # The next test has all of this, compiled.
def test_one_tape(connect):
    fit_both(connect, sequential(OneTape, metrics=["mae"]), *regression(160))


def test_compiled_and_clipped(connect):
    clipped = lambda: o.Adam(1e-2, global_clipnorm=0.1)  # noqa: E731
    make = sequential(OneTape, clipped, jit_compile=True, metrics=["mae"])
    fit_both(connect, make, *regression(160))


class WithSuper(keras.Sequential):
    """Does something of its own around Keras's step, whose extra entries go into the logs."""

    def train_step(self, data):
        logs = super().train_step(data)
        logs["twice"] = 2 * logs["loss"]
        logs["last"] = tf.reduce_mean(data[0])
        logs["constant"] = 3.0
        return logs


@pytest.mark.parametrize("steps", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_super_and_logs_of_its_own(connect, steps):
    fit_both(connect, sequential(WithSuper, steps_per_execution=steps), *regression(160))


class VAE(keras.Model):
    """An encoder and a decoder, a metrics property, no `call`."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([keras.Input([8]), keras.layers.Dense(4)])
        self.decoder = keras.Sequential([keras.Input([2]), keras.layers.Dense(8)])
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")
        self.kl_loss_tracker = keras.metrics.Mean(name="kl_loss")

    @property
    def metrics(self):
        return [self.total_loss_tracker, self.kl_loss_tracker]

    def train_step(self, data):
        if isinstance(data, tuple):
            data = data[0]
        with tf.GradientTape() as tape:
            mean, log_var = tf.split(self.encoder(data), 2, axis=-1)
            z = mean + tf.exp(0.5 * log_var) * 0.1
            reconstruction = tf.reduce_mean(tf.square(data - self.decoder(z)))
            kl = -0.5 * tf.reduce_mean(1 + log_var - tf.square(mean) - tf.exp(log_var))
            total = reconstruction + kl
        gradients = tape.gradient(total, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights))
        self.total_loss_tracker.update_state(total)
        self.kl_loss_tracker.update_state(kl)
        return {
            "loss": self.total_loss_tracker.result(),
            "kl_loss": self.kl_loss_tracker.result(),
        }


def vae():
    model = VAE()
    model.compile(o.Adam(1e-2), jit_compile=False)
    return model


def test_vae(connect):
    fit_both(connect, vae, regression(160)[0])


class Contrastive(keras.Model):
    """An encoder, and a moving average of it that the step itself keeps (momentum contrast)."""

    def __init__(self):
        super().__init__()
        self.encoder = mlp(units=8, outputs=4)
        self.slow = keras.models.clone_model(self.encoder)
        self.slow.set_weights(self.encoder.get_weights())
        self.loss_tracker = keras.metrics.Mean(name="c_loss")

    @property
    def metrics(self):
        return [self.loss_tracker]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            one = tf.math.l2_normalize(self.encoder(data, training=True), axis=1)
            two = tf.math.l2_normalize(self.slow(data + 0.1, training=True), axis=1)
            logits = tf.matmul(one, two, transpose_b=True)
            labels = tf.range(tf.shape(data)[0])
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            )
        variables = self.encoder.trainable_variables
        for slow, fast in zip(self.slow.weights, self.encoder.weights):
            slow.assign(0.9 * slow + 0.1 * fast)
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        self.loss_tracker.update_state(loss)
        return {"c_loss": self.loss_tracker.result()}


def contrastive():
    model = Contrastive()
    model.compile(o.Adam(1e-2), jit_compile=False)
    return model


def test_contrastive_with_a_moving_average_of_the_encoder(connect):
    fit_both(connect, contrastive, regression(160)[0])


class Penalized(keras.Sequential):
    """A gradient of a gradient, by nested tapes, and a Jacobian."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                y_pred = self(x, training=True)
            slope = inner.gradient(y_pred, x)
            loss = self.compute_loss(x, y, y_pred) + tf.reduce_mean(tf.square(slope))
        gradients = outer.gradient(loss, self.trainable_variables)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(self(x, training=False), axis=0)
        jacobian = tape.jacobian(total, self.trainable_variables[0])
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables))
        return {"penalized": loss, "jacobian": tf.norm(jacobian)}


def test_nested_tapes_and_jacobians(connect):
    fit_both(connect, sequential(Penalized), *regression(96))


class Unbuilt(keras.Model):
    """Layers that are created when the first batch arrives, in a decorated `train_step`."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)

    @tf.function
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.out(self.hidden(x)) - y))
            if tf.reduce_mean(x) > 100.0:  # AutoGraph makes a condition of it.
                loss = 2.0 * loss
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return {"loss_now": loss}


def test_unbuilt_and_decorated(connect):
    def make():
        model = Unbuilt()
        model.compile(o.SGD(0.1), jit_compile=False)
        return model

    fit_both(connect, make, *regression(96))


class Recommender(keras.Model):
    """An embedding table under a tape of its own."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(50, 4)
        self.out = keras.layers.Dense(1)

    def call(self, x):
        return self.out(keras.ops.mean(self.table(x), axis=1))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x))
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return {"loss_now": loss}


class NoisyRecommender(Recommender):
    """Changes the gradient of its table, which must then be whole."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x))
        variables = self.trainable_variables
        gradients = [tf.convert_to_tensor(g) + 0.01 for g in tape.gradient(loss, variables)]
        self.optimizer.apply_gradients(zip(gradients, variables))
        return {"loss_now": loss}


@pytest.mark.parametrize("cls, tables", [(Recommender, 1), (NoisyRecommender, 0)])
def test_tables(connect, cls, tables):
    def make():
        model = cls()
        model.compile(o.SGD(0.1), "mse", jit_compile=False)
        return model

    rng = np.random.default_rng(0)
    # No id twice in a batch: Keras's SGD and a dense gradient are then the same.
    x = np.concatenate([rng.permutation(48).reshape(16, 3) for _ in range(4)]).astype("int32")
    fit_both(connect, make, x, rng.normal(size=(64, 1)).astype("float32"))
    model = make()
    trainer = tfps.Trainer(model, connect())
    trainer.fit(x, x[:, :1].astype("float32"), batch_size=16, verbose=0)
    assert len(trainer._session.served.store.plan.tables) == tables
    assert trainer.predict(x[:5], verbose=0).shape == (5, 1)


class Remembering(keras.Sequential):
    """A stateful RNN under a tape of its own."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return {"loss_now": loss}


def test_stateful_layers(connect):
    def make():
        layers = [keras.layers.GRU(4, stateful=True), keras.layers.Dense(1)]
        model = Remembering([keras.Input([2, 4], batch_size=16), *layers])
        model.compile(o.SGD(0.1), "mse", jit_compile=False)
        return model

    x, y = regression(96)
    fit_both(connect, make, x.reshape(96, 2, 4), y)
