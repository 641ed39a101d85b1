"""The optimizer's state goes from Keras to the servers and back, beside plain Keras alone."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error
from tfps import _keras_optimizers, _keras_variables
from tfps.model import optimizer_traits
from tfps.store import model_copy
from tfps.store.columns import Column

o = keras.optimizers
soak = pytest.mark.soak
schedules = o.schedules
ORDER = {"batch_size": 16, "shuffle": False, "verbose": 0}


def several(**settings):
    """SGD for biases, clipped Adam for the others."""
    chosen = o.OptimizerMap(o.Adam(0.02, clipnorm=0.1))
    chosen[".*bias"] = o.SGD(0.05, momentum=0.9)
    return o.MultiOptimizer(chosen, **settings)


OPTIMIZERS = {
    "several": several,
    "schedule": lambda: o.Adam(schedules.ExponentialDecay(0.05, 3, 0.7)),
    "averages": lambda: o.SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.8),
    "accumulation": lambda: o.Adam(0.02, gradient_accumulation_steps=4),
    "nadam": lambda: o.Nadam(0.02),
    "adafactor": lambda: o.Adafactor(0.05),
    "loss scale": lambda: o.LossScaleOptimizer(
        o.SGD(0.05, momentum=0.9), initial_scale=64.0, dynamic_growth_steps=3
    ),
}


def compiled(optimizer, make=mlp):
    model = make()
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def states(model):
    """Name -> array of all that `model.save` saves."""
    optimizer = model.optimizer
    named = {f"weight {i}": w for i, w in enumerate(model.get_weights())}
    named |= {f"state {i} {v.path}": v.numpy() for i, v in enumerate(optimizer.variables)}
    return {name: np.asarray(v, np.float64) for name, v in named.items()}


def assert_equal_states(mine, reference):
    for (name, a), b in zip(states(mine).items(), states(reference).values(), strict=True):
        np.testing.assert_allclose(
            a, b, rtol=2e-5, atol=1e-5 * max(1e-3, np.abs(b).max()), err_msg=name
        )


def through_a_file(model, path):
    model.save(path)
    return keras.models.load_model(path)


# Plain schedules and Nadam have nothing here that tests below and of the store's state do not hold.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=soak if n in ("schedule", "nadam") else []) for n in OPTIMIZERS],
)
def test_both_ways_with_plain_keras(connect, name, tmp_path):
    """Plain Keras, servers, another Trainer, plain Keras: 5 batches each, 20 as one run."""
    x, y = regression(80)
    model, reference = compiled(OPTIMIZERS[name]()), compiled(OPTIMIZERS[name]())
    strategy = connect()
    model.fit(x, y, **ORDER)
    reference.fit(x, y, **ORDER)
    trainer = tfps.Trainer(model, strategy)
    trainer.fit(x, y, **ORDER)
    reference.fit(x, y, **ORDER)
    assert_equal_states(model, reference)
    model = through_a_file(model, tmp_path / "m.keras")
    tfps.Trainer(model, strategy).fit(x, y, **ORDER)
    reference.fit(x, y, **ORDER)
    assert_equal_states(model, reference)
    model = through_a_file(model, tmp_path / "m.keras")
    model.fit(x, y, **ORDER)
    reference.fit(x, y, **ORDER)
    assert_equal_states(model, reference)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: o.ScheduleFreeAdamW(0.02, warmup_steps=4),
        pytest.param(lambda: o.Muon(0.01), marks=soak),
    ],
    ids=["schedule free", "muon"],
)
def test_trainers_one_after_the_other_equal_one(connect, optimizer):
    """Bit by bit. Slots of `ScheduleFreeAdamW` begin as the weights."""
    x, y = regression(80)
    model, reference = compiled(optimizer()), compiled(optimizer())
    whole = tfps.Trainer(reference, connect())
    for _ in range(3):
        tfps.Trainer(model, connect()).fit(x, y, **ORDER)
        whole.fit(x, y, **ORDER)
    for a, b in zip(states(model).values(), states(reference).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unbuilt_optimizer_begins_where_its_iterations_are(connect):
    x, y = regression(80)
    models = [compiled(o.SGD(schedules.ExponentialDecay(0.1, 2, 0.5))) for _ in range(2)]
    for model in models:
        model.optimizer.iterations.assign(6)
    tfps.Trainer(models[0], connect()).fit(x, y, **ORDER)
    models[1].fit(x, y, **ORDER)
    assert int(models[0].optimizer.iterations) == 11
    assert_equal_states(*models)


def test_plain_keras_in_between_is_gone_on_from(connect):
    """The same Trainer, whose servers have older slots; and Keras's traced step is used again."""
    x, y = regression(80)
    model, reference = compiled(o.Adam(0.02)), compiled(o.Adam(0.02))
    trainer = tfps.Trainer(model, connect())
    for fit in (trainer.fit, model.fit, trainer.fit, model.fit, trainer.fit):
        fit(x, y, **ORDER)
        reference.fit(x, y, **ORDER)
    assert_equal_states(model, reference)


def test_tables_that_are_updated_by_rows(connect):
    def embedding():
        keras.utils.set_random_seed(1)
        layers = [keras.Input([3], dtype="int32"), keras.layers.Embedding(50, 4)]
        return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(1)])

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 50, [80, 3]), rng.normal(size=[80, 1]).astype("float32")
    one, two = compiled(o.Adam(0.01), embedding), compiled(o.Adam(0.01), embedding)
    strategy = connect()
    whole = tfps.Trainer(one, strategy, sparse_updates="lazy")
    whole.fit(x, y, epochs=2, **ORDER)
    for _ in range(2):
        tfps.Trainer(two, strategy, sparse_updates="lazy").fit(x, y, **ORDER)
    assert_equal_states(two, one)


def test_backup_and_restore_goes_on_where_it_was(connect, tmp_path):
    x, y = regression(80)
    made = lambda: compiled(o.Adam(schedules.ExponentialDecay(0.05, 3, 0.7)))  # noqa: E731
    reference = made()
    reference.fit(x, y, epochs=4, **ORDER)

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("interrupted")

    backup = lambda: keras.callbacks.BackupAndRestore(str(tmp_path))  # noqa: E731
    strategy = connect()
    with pytest.raises(RuntimeError, match="interrupted"):
        tfps.Trainer(made(), strategy).fit(
            x, y, epochs=4, callbacks=[backup(), Interrupt()], **ORDER
        )
    model = made()
    history = tfps.Trainer(model, strategy).fit(x, y, epochs=4, callbacks=[backup()], **ORDER)
    assert history.epoch == [2, 3]
    assert_equal_states(model, reference)


def test_a_file_saved_in_a_hook_is_gone_on_with(connect, tmp_path):
    x, y = regression(80)
    path = str(tmp_path / "{epoch}.keras")
    model, reference = compiled(o.Adam(0.02)), compiled(o.Adam(0.02))
    save = keras.callbacks.ModelCheckpoint(path)
    tfps.Trainer(model, connect()).fit(x, y, epochs=2, callbacks=[save], **ORDER)
    reference.fit(x, y, epochs=2, **ORDER)
    loaded = keras.models.load_model(tmp_path / "1.keras")
    loaded.fit(x, y, **ORDER)
    assert_equal_states(loaded, reference)
    assert_equal_states(model, reference)


def slots(model):
    """The slots of the optimizer, without looking at them."""
    inner = optimizer_traits.inner(model.optimizer)
    return [v for owner, _, v in _keras_optimizers.slots_of(inner) if owner is not None]


def elements(variable):
    """How many elements the chief holds of a Keras variable."""
    held = _keras_variables.content(variable)
    return 0 if held is None else int(np.prod(held.read_value().shape))


@pytest.mark.parametrize("built", [False, True])
def test_the_chief_holds_no_slots_while_fit_runs(connect, built):
    x, y = regression(80)
    model = compiled(o.Adam(0.02))
    if built:
        model.fit(x, y, **ORDER)
    held, after = [], []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            held.append([elements(v) for v in slots(model)])

        def on_epoch_end(self, epoch, logs=None):
            assert np.abs(slots(model)[0].numpy()).max() > 0
            after.append([elements(v) for v in slots(model)])

    trainer = tfps.Trainer(model, connect())
    trainer.fit(x, y, epochs=2, callbacks=[Look()], **ORDER)
    assert len(held) == 10 and not np.any(held)
    assert [a[0] for a in after] == [8 * 16] * 2
    assert sum(elements(v) for v in slots(model)) == 2 * model.count_params()
    exported = trainer.state.export().servers.optimizer
    np.testing.assert_array_equal(slots(model)[0], exported.slots[0]["momentums"])
    assert int(exported.scalars["iterations"]) == int(model.optimizer.iterations)


def test_slots_and_iterations_that_a_hook_sets_are_trained_on(connect):
    x, y = regression(80)
    rate = schedules.ExponentialDecay(0.1, 2, 0.5)
    models = [compiled(o.SGD(rate, momentum=0.9)) for _ in range(2)]

    class Restart(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                self.model.optimizer.iterations.assign(0)
                for v in slots(self.model):
                    v.assign(0.5 * v)

        def on_epoch_end(self, epoch, logs=None):
            for v in slots(self.model)[::2]:
                v.assign(np.zeros(v.shape))

    tfps.Trainer(models[0], connect()).fit(x, y, epochs=2, callbacks=[Restart()], **ORDER)
    models[1].fit(x, y, epochs=2, callbacks=[Restart()], **ORDER)
    assert int(models[0].optimizer.iterations) == 2
    assert_equal_states(*models)


@pytest.mark.parametrize("on_epoch", [False, True])
def test_averaged_weights_are_swapped_as_in_keras(connect, on_epoch):
    x, y = regression(80)
    models = [compiled(o.SGD(0.1, use_ema=True, ema_momentum=0.8)) for _ in range(2)]
    trainer = tfps.Trainer(models[0], connect())
    histories, seen = [], ([], [])
    for model, fit, weights in zip(models, (trainer.fit, models[1].fit), seen, strict=True):
        look = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda e, logs, m=model, w=weights: w.append(m.get_weights()[0])
        )
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch)
        args = {"epochs": 3, "validation_data": (x, y), "callbacks": [swap, look], **ORDER}
        histories.append(fit(x, y, **args).history["val_loss"])
    np.testing.assert_allclose(*histories, rtol=1e-5)
    np.testing.assert_allclose(*seen, rtol=1e-4, atol=1e-6)
    assert_equal_states(*models)
    swap = [keras.callbacks.SwapEMAWeights()]
    losses = [
        evaluate(x, y, callbacks=swap, verbose=0)
        for evaluate in (trainer.evaluate, models[1].evaluate)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            raise RuntimeError("stopped")


def test_after_an_error_the_model_has_what_the_servers_had(connect):
    x, y = regression(80)
    models = [compiled(o.Adam(0.02)) for _ in range(2)]
    trainer = tfps.Trainer(models[0], connect())
    for fit in (trainer.fit, models[1].fit):
        with pytest.raises(RuntimeError, match="stopped"):
            fit(x, y, callbacks=[Stop()], **ORDER)
    assert_equal_states(*models)
    for fit in (trainer.fit, models[1].fit):
        fit(x, y, **ORDER)
    assert_equal_states(*models)


@pytest.mark.parametrize("built", [pytest.param(False, marks=soak), True])
def test_without_servers_the_optimizer_starts_afresh(connect, built, monkeypatch):
    """Its slots are lost, so the iterations that they belong to are, too."""
    x, y = regression(80)
    model = compiled(o.Adam(0.02))
    if built:
        model.fit(x, y, **ORDER)
    trainer = tfps.Trainer(model, connect())

    class Lose(Stop):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                self.weights = self.model.get_weights()

                def unreachable(*args):
                    raise ConnectionError("gone")

                monkeypatch.setattr(Column, "read", unreachable)
            super().on_train_batch_end(batch, logs)

    lose = Lose()
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.fit(x, y, callbacks=[lose], **ORDER)
    monkeypatch.undo()
    for a, b in zip(model.get_weights(), lose.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not model.optimizer.built
    assert int(model.optimizer.iterations) == 0
    reference = compiled(o.Adam(0.02))
    reference.set_weights(lose.weights)
    for fit in (trainer.fit, reference.fit):
        fit(x, y, **ORDER)
    assert_equal_states(model, reference)


def test_a_server_that_hangs_does_not_hold_up_an_error(connect, monkeypatch):
    x, y = regression(80)
    model = compiled(o.Adam(0.02))
    trainer = tfps.Trainer(model, connect())
    monkeypatch.setattr(model_copy, "RESCUE", 0.2)
    released = threading.Event()
    read = Column.read

    class Hang(Stop):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                self.weights = self.model.get_weights()
                monkeypatch.setattr(Column, "read", lambda *args: released.wait(60) and read(*args))
            super().on_train_batch_end(batch, logs)

    hang = Hang()
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.fit(x, y, callbacks=[hang], **ORDER)
    released.set()
    monkeypatch.undo()
    trainer.fit(x, y, epochs=0, **ORDER)
    for a, b in zip(model.get_weights(), hang.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(model.optimizer.iterations) == 0


def test_an_optimizer_that_was_built_for_other_variables_is_refused_as_in_keras(connect):
    x, y = regression(80)
    model = mlp()
    model.layers[0].trainable = False
    model.compile(o.Adam(0.02), "mse")
    tfps.Trainer(model, connect()).fit(x, y, **ORDER)
    model.layers[0].trainable = True
    model.compile(model.optimizer, "mse")
    with pytest.raises(ValueError, match="Unknown variable"):
        tfps.Trainer(model, connect()).fit(x, y, **ORDER)


def test_a_fit_without_an_epoch_leaves_the_weights_alone(connect):
    """Averages that nothing was averaged into are no weights."""
    x, y = regression(32)
    model = compiled(o.SGD(0.1, use_ema=True))
    before = model.get_weights()
    tfps.Trainer(model, connect()).fit(x, y, initial_epoch=3, epochs=3, verbose=0)
    for mine, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, old)


class TwoOptimizers(keras.Model):
    """A step that applies optimizers of its own, one of which averages."""

    def __init__(self):
        super().__init__()
        self.first, self.second = keras.layers.Dense(4), keras.layers.Dense(1)
        self.own = [o.SGD(0.05, use_ema=True, ema_momentum=0.5), o.SGD(0.05)]

    def call(self, x):
        return self.second(self.first(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        parts = [self.first.trainable_weights, self.second.trainable_weights]
        gradients = tape.gradient(loss, parts)
        for one, mine, part in zip(self.own, gradients, parts, strict=True):
            one.apply_gradients(zip(mine, part, strict=True))
        return {"loss": loss}


def test_averages_of_an_optimizer_that_the_model_was_not_compiled_with(connect):
    """They are the user's to read: Keras installs those of `model.optimizer`."""
    x, y = regression(64)
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        model = TwoOptimizers()
        model.compile(loss="mse")
        model(x[:1])
        models.append(model)
    tfps.Trainer(models[0], connect()).fit(x, y, epochs=2, **ORDER)
    models[1].fit(x, y, epochs=2, **ORDER)
    assert relative_error(*models) < 1e-5
