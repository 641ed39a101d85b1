"""Models with a `train_step`, `test_step` or `predict_step` of their own, beside plain Keras.

The models are written as Keras's guides and examples write them.
"""

# ruff: noqa: B905

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error

o = keras.optimizers


def fit_both(connect, make, *data, epochs=2, workers=1, tolerance=1e-5, **fit):
    """Trains two models alike, by a Trainer and by Keras; returns them after comparing them.

    Args:
      connect: the fixture.
      make: gives a compiled model, with the same weights each time.
      *data: arrays for `fit`.
      epochs: how many.
      workers: of the cluster.
      tolerance: relative error of weights and of the history.
      **fit: further arguments of `fit`.
    """
    fit = {"batch_size": 16, "shuffle": False, "verbose": 0, "epochs": epochs, **fit}
    strategy, models, histories = connect(workers), [], []
    for run in ("tfps", "keras"):
        keras.utils.set_random_seed(1)
        model = make()
        train = tfps.Trainer(model, strategy).fit if run == "tfps" else model.fit
        histories.append(train(*data, **fit).history)
        models.append(model)
    mine, theirs = histories
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(mine[name], values, rtol=10 * tolerance, err_msg=name)
    assert relative_error(*models) < tolerance
    return models


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


def sequential(cls, optimizer=lambda: o.Adam(1e-2), **compile_args):
    def make():
        layers = [
            keras.Input([8]),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
        model = cls(layers)
        model.compile(optimizer(), "mse", **{"jit_compile": False, **compile_args})
        return model

    return make


def test_one_tape(connect):
    fit_both(connect, sequential(OneTape, metrics=["mae"]), *regression(160))


def test_compiled_and_clipped(connect):
    make = sequential(OneTape, jit_compile=True, optimizer=lambda: o.SGD(0.1, global_clipnorm=0.1))
    fit_both(connect, make, *regression(160))


class WithSuper(keras.Sequential):
    """Does something of its own around Keras's step, whose extra entries go into the logs."""

    def train_step(self, data):
        logs = super().train_step(data)
        logs["twice"] = 2 * logs["loss"]
        logs["last"] = tf.reduce_mean(data[0])
        logs["constant"] = 3.0
        return logs


def test_super_and_logs_of_its_own(connect):
    fit_both(connect, sequential(WithSuper), *regression(160))
    fit_both(connect, sequential(WithSuper, steps_per_execution=4), *regression(160))


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


def test_results_are_of_all_workers_together(connect):
    strategy = connect(2)
    x = regression(160)[0]
    model = vae()
    model.optimizer.learning_rate = 0.0
    trainer = tfps.Trainer(model, strategy)
    mine = trainer.fit(x, batch_size=16, verbose=0).history
    reference = vae()
    reference.set_weights(model.get_weights())
    reference.optimizer.learning_rate = 0.0
    theirs = reference.fit(x, batch_size=16, verbose=0).history
    for name in ("loss", "kl_loss"):
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5)


class Distiller(keras.Model):
    """A student that learns from a frozen teacher, with a `test_step` of its own."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def compile(self, optimizer, metrics, student_loss, distillation_loss):
        super().compile(optimizer=optimizer, metrics=metrics, jit_compile=False)
        self.student_loss, self.distillation_loss = student_loss, distillation_loss

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        teacher = self.teacher(x, training=False)
        return 0.3 * self.student_loss(y, y_pred) + 0.7 * self.distillation_loss(teacher, y_pred)

    def call(self, x):
        return self.student(x)

    def train_step(self, data):
        x, y = data
        teacher = self.teacher(x, training=False)
        with tf.GradientTape() as tape:
            y_pred = self.student(x, training=True)
            student = self.student_loss(y, y_pred)
            loss = 0.3 * student + 0.7 * self.distillation_loss(teacher, y_pred)
        variables = self.student.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        self._compile_metrics.update_state(y, y_pred)
        results = self.get_metrics_result()
        results.update({"student_loss": student})
        return results

    def test_step(self, data):
        x, y = data
        y_pred = self.student(x, training=False)
        self._compile_metrics.update_state(y, y_pred)
        return {**self.get_metrics_result(), "student_loss": self.student_loss(y, y_pred)}


def distiller():
    model = Distiller(mlp(units=4), mlp(units=16))
    model.compile(o.Adam(1e-2), ["mae"], keras.losses.MeanSquaredError(), keras.losses.Huber())
    return model


def test_distillation_and_own_test_step(connect):
    x, y = regression(160)
    mine, theirs = fit_both(
        connect, distiller, x, y, validation_data=(x[:48], y[:48]), validation_batch_size=16
    )
    expected = theirs.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    trainer = tfps.Trainer(mine, connect())
    got = trainer.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-4)


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


class OwnPredict(keras.Sequential):
    """Returns a structure of its own."""

    def predict_step(self, data):
        x = data[0] if isinstance(data, tuple) else data
        return {"y": self(x, training=False), "x": x}


def test_own_predict_step(connect):
    strategy = connect(2)
    x, _ = regression(80)
    model = sequential(OwnPredict)()
    mine = tfps.Trainer(model, strategy).predict(x, batch_size=16, verbose=0)
    theirs = model.predict(x, batch_size=16, verbose=0)
    np.testing.assert_array_equal(mine["x"], x)
    np.testing.assert_allclose(mine["y"], theirs["y"], rtol=1e-5)


class OwnMetrics(keras.Sequential):
    """Adds to what `compute_metrics` returns."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = keras.metrics.Sum(name="seen")

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        self.seen.update_state(keras.ops.ones_like(y))
        return {**results, "seen": self.seen.result(), "tenth": self.seen.result() / 10}


def test_what_compute_metrics_returns_is_logged(connect):
    x, y = regression(160)
    mine, _ = fit_both(connect, sequential(OwnMetrics), x, y, validation_data=(x, y))
    assert mine.history.history["tenth"] == [16.0, 16.0]


class Noisy(keras.layers.Layer):
    """Monte Carlo dropout: it draws in evaluation and prediction, too."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, x):
        return self.dropout(x, training=True)


def test_noise_differs_by_batch_and_call_and_trainer(connect):
    strategy = connect(2)
    model = keras.Sequential([keras.Input([8]), Noisy()])
    model.compile("sgd", "mse", jit_compile=False)
    x = np.ones((64, 8), "float32")
    drawn, losses = [], []
    for _ in range(2):
        trainer = tfps.Trainer(model, strategy)
        for _ in range(2):
            drawn += np.split(trainer.predict(x, batch_size=16, verbose=0), 4)
            losses.append(trainer.evaluate(x, 0 * x, batch_size=16, verbose=0))
    assert len({batch.tobytes() for batch in drawn}) == len(drawn)
    assert len(set(losses)) == len(losses)
    before = model.predict(x, verbose=0)
    tfps.Trainer(model, strategy).predict(x, verbose=0)
    assert not np.array_equal(before, model.predict(x, verbose=0))


REFUSED = {
    "under a tf.cond": lambda self, gradients, variables: tf.cond(
        tf.constant(True),
        lambda: self.optimizer.apply_gradients(zip(gradients, variables)),
        lambda: self.optimizer.iterations.value,
    ),
    "which is no keras.Variable": lambda self, gradients, variables: self.optimizer.apply_gradients(
        [(gradients[0], self.native)]
    ),
    "give it a constraint": lambda self, gradients, variables: (
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
