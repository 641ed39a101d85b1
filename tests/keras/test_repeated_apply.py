"""Steps that apply one optimizer several times, beside plain Keras."""

# ruff: noqa: B905

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import regression
from tests.keras.test_own_steps import fit_both, o, sequential
from tfps import partitioners

pytestmark = pytest.mark.filterwarnings("ignore:.*values before the step")


class Thrice(keras.Sequential):
    """Applies the same gradients three times, as if it repeated the batch with a fixed target."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        for _ in range(3):
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables))
        self._loss_tracker.update_state(loss)
        return {"loss": self._loss_tracker.result()}


class Halves(keras.Sequential):
    """Applies one optimizer to the first layers, then to the last one."""

    num_last = 2  # variables of the last one

    def train_step(self, data):
        x, y = data
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        pairs = list(zip(gradients, self.trainable_variables))
        self.optimizer.apply_gradients(pairs[: -self.num_last])
        self.optimizer.apply_gradients(pairs[-self.num_last :])
        self._loss_tracker.update_state(loss)
        return {"loss": self._loss_tracker.result()}


def scheduled():
    return o.Adam(o.schedules.ExponentialDecay(1e-2, 5, 0.5))


def clipped():
    return o.SGD(1e-2, momentum=0.9, global_clipnorm=0.1, weight_decay=1e-2)


@pytest.mark.parametrize(
    "cls, optimizer",
    [
        (Thrice, scheduled),
        (Halves, clipped),
        pytest.param(Thrice, clipped, marks=pytest.mark.soak),
        pytest.param(Halves, scheduled, marks=pytest.mark.soak),
    ],
)
def test_every_call_is_an_update(connect, cls, optimizer):
    mine, theirs = fit_both(connect, sequential(cls, optimizer), *regression(64))
    assert int(mine.optimizer.iterations) == int(theirs.optimizer.iterations)


@pytest.mark.parametrize("consistency", [tfps.Async(), tfps.Sync()])
def test_on_several_servers(connect, consistency):
    """Each server counts all calls, those too that concern variables of the other alone."""
    x, y = regression(64)
    strategy = connect(ps=2, partitioner=partitioners.Balanced())
    weights = []
    for run in ("tfps", "keras"):
        keras.utils.set_random_seed(1)
        model = sequential(Halves)()
        train = tfps.Trainer(model, strategy, consistency).fit if run == "tfps" else model.fit
        train(x, y, batch_size=16, shuffle=False, verbose=0, epochs=2)
        weights.append([*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)])
    for mine, theirs in zip(*weights):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


class OneByOne(Halves):
    """Applies one optimizer to the first of two variables, then to the other."""

    num_last = 1


def test_a_server_counts_the_calls_that_concern_the_other_alone(connect):
    x, y = regression(64)
    weights = []
    for run in ("tfps", "keras"):
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Dense(n, use_bias=False) for n in (4, 1)]
        model = OneByOne([keras.Input([8]), *layers])
        model.compile(o.Adam(1e-2), "mse")
        trainer = tfps.Trainer(model, connect(ps=2))
        (trainer if run == "tfps" else model).fit(x, y, 16, epochs=2, shuffle=False, verbose=0)
        if run == "tfps":
            buckets = trainer._session.served.store.plan.buckets
            assert len({bucket.ps for bucket in buckets}) == 2
        weights.append([*model.get_weights(), *(v.numpy() for v in model.optimizer.variables)])
    for mine, theirs in zip(*weights):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_mean_of_different_gradients(connect):
    """With plain SGD, the mean applied twice is both gradients applied once."""

    class TwoLosses(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape(persistent=True) as tape:
                y_pred = self(x, training=True)
                losses = tf.reduce_mean((y - y_pred) ** 2), tf.reduce_mean(tf.abs(y_pred))
            gradients = [tape.gradient(loss, self.trainable_variables) for loss in losses]
            for some in gradients:
                self.optimizer.apply_gradients(zip(some, self.trainable_variables))
            self._loss_tracker.update_state(losses[0])
            return {"loss": self._loss_tracker.result()}

    fit_both(connect, sequential(TwoLosses, lambda: o.SGD(1e-2)), *regression(64))


class Critic(keras.Model):
    """A WGAN-GP as in Keras's example, of numbers in place of images."""

    def __init__(self):
        super().__init__()
        layers = keras.layers
        self.generator = keras.Sequential(
            [keras.Input([4]), layers.Dense(16, activation="relu"), layers.Dense(1)]
        )
        self.critic = keras.Sequential(
            [keras.Input([1]), layers.Dense(16, activation="tanh"), layers.Dense(1)]
        )
        self.seeds = keras.random.SeedGenerator(3)

    def compile(self, rate):
        super().compile()
        self.of_critic, self.of_generator = (o.Adam(rate, beta_1=0.5) for _ in range(2))

    def penalty(self, real, fake):
        share = keras.random.uniform([tf.shape(real)[0], 1], seed=self.seeds)
        mixed = real + share * (fake - real)
        with tf.GradientTape() as tape:
            tape.watch(mixed)
            scores = self.critic(mixed, training=True)
        norm = tf.sqrt(tf.reduce_sum(tape.gradient(scores, mixed) ** 2, axis=1) + 1e-12)
        return tf.reduce_mean((norm - 1.0) ** 2)

    def noise(self, real):
        return keras.random.normal([tf.shape(real)[0], 4], seed=self.seeds)

    def train_step(self, real):
        for _ in range(3):
            fake = self.generator(self.noise(real), training=True)
            with tf.GradientTape() as tape:
                gap = tf.reduce_mean(self.critic(fake)) - tf.reduce_mean(self.critic(real))
                loss = gap + 10.0 * self.penalty(real, fake)
            gradients = tape.gradient(loss, self.critic.trainable_variables)
            self.of_critic.apply_gradients(zip(gradients, self.critic.trainable_variables))
        with tf.GradientTape() as tape:
            fake = self.generator(self.noise(real), training=True)
            cost = -tf.reduce_mean(self.critic(fake))
        gradients = tape.gradient(cost, self.generator.trainable_variables)
        self.of_generator.apply_gradients(zip(gradients, self.generator.trainable_variables))
        return {"gap": gap}


@pytest.mark.soak  # Its parts are in the tests above, and in `test_own_applies.py`.
def test_a_wgan_gp_trains_as_well_as_in_keras(connect):
    real = np.random.default_rng(0).normal(3.0, 0.5, size=(512, 1)).astype("float32")
    noise = np.random.default_rng(1).normal(size=(1000, 4)).astype("float32")
    strategy, made = connect(), {}
    for run in ("tfps", "keras"):
        keras.utils.set_random_seed(1)
        model = Critic()
        model.compile(2e-3)
        train = tfps.Trainer(model, strategy).fit if run == "tfps" else model.fit
        train(real, batch_size=64, epochs=20, verbose=0)
        made[run] = model.generator.predict(noise, verbose=0)
        assert int(model.of_critic.iterations) == 3 * int(model.of_generator.iterations) == 3 * 160
    mine, theirs = (samples.mean() for samples in made.values())
    assert theirs > 1.0  # It began at 0, and is on its way to 3.
    assert abs(mine - theirs) < 0.15 * theirs


def test_local_steps_refuse(connect):
    model = sequential(Thrice)()
    trainer = tfps.Trainer(model, connect(), tfps.LocalSteps(2))
    with pytest.raises(
        tfps.errors.ConfigError, match=r"LocalSteps applies an optimizer once.*\[3\]"
    ):
        trainer.fit(*regression(64), verbose=0)
