"""What holds under every policy, and when another one takes over."""

import glob

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import Counting, mlp, regression, watched
from tests.covering import covering
from tfps import compression

o = keras.optimizers

POLICIES = {
    "async": tfps.Async,
    "bounded": lambda: tfps.BoundedStaleness(1),
    "sync": tfps.Sync,
    "backup": lambda: tfps.Sync(backups=1),
    "local": lambda: tfps.LocalSteps(2, o.SGD(1.0)),
    "each": lambda: tfps.LocalSteps(2, o.SGD(1.0), merge="each"),
    "delayed": lambda: tfps.LocalSteps(2, o.SGD(1.0), merge="each", delay=1),
}


def policies(*quick):
    """A mark that runs a test under some policies, and in a soak under all but the delayed."""
    return pytest.mark.parametrize(
        "policy",
        [
            pytest.param(name, marks=[] if name in quick else pytest.mark.soak)
            for name in POLICIES
            if name != "delayed"
        ],
    )


# Codecs.


PUSH = {
    "int8": compression.Int8(min_bytes=0),
    "topk": compression.TopK(0.1, min_bytes=0),
    "powersgd": compression.PowerSGD(2, min_bytes=0),
    "dgc": compression.DGC(0.1, min_bytes=0),
}
soak = pytest.mark.soak


def of_layer(variable):
    """The codec that a kernel's layer is named for, if it is."""
    *_, layer, name = variable.path.split("/")
    return PUSH.get(layer) if name == "kernel" else None


def deep():
    """A network with a layer for each of the codecs of `PUSH`."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(16, activation="tanh", name=name) for name in PUSH]
    return keras.Sequential([keras.Input([8]), *layers, keras.layers.Dense(1)])


@pytest.mark.parametrize(
    "codecs, policies",
    [
        ({"push": of_layer}, ("sync", "local")),
        pytest.param(
            {"push": PUSH["int8"], "pull": compression.Int8(min_bytes=0)}, ("each",), marks=soak
        ),
        pytest.param({"push": PUSH["int8"]}, ("sync", "local", "each"), marks=soak),
        pytest.param({"push": PUSH["topk"]}, ("sync", "local"), marks=soak),
        pytest.param({"push": PUSH["powersgd"]}, ("sync", "local"), marks=soak),
        pytest.param({"push": PUSH["dgc"]}, ("sync", "local"), marks=soak),
        pytest.param({"pull": compression.Int8(min_bytes=0)}, ("sync", "each"), marks=soak),
    ],
    ids=["all", "both", *PUSH, "pull-int8"],
)
def test_every_codec_trains_under_every_policy(connect, codecs, policies):
    """One trainer goes through the policies whose steps differ, so what codecs remember goes along.

    `Async` and `BoundedStaleness` have the step that `test_codecs.py` is about. Differences that
    are merged one by one are encoded like those of rounds, so one codec speaks for all.
    """
    x, y = regression(320)
    model = deep() if codecs.get("push") is of_layer else mlp()
    model.compile(o.SGD(0.02), "mse", jit_compile=False)
    trainer = tfps.Trainer(model, connect(2), **codecs)
    losses = []
    for policy in policies:
        before = model.get_weights()
        trainer.consistency = POLICIES[policy]()
        losses += trainer.fit(x, y, batch_size=16, epochs=2, verbose=0).history["loss"]
        for old, new in zip(before, model.get_weights(), strict=True):
            assert np.isfinite(new).all()
            assert not np.array_equal(old, new)
    assert np.isfinite(losses).all()
    assert max(losses[2:] or losses[1:]) < 0.8 * losses[0]


def expected_sum(log):
    """How far a weight with gradient 1 went, by what the schedules decided."""
    total, held = 0.0, {}
    for event, who, *rest in log:
        if event == "held":
            held[who] = rest[0]
        elif event == "applied":
            total += rest[0]
        elif event == "due":
            total += sum(share * held.pop(worker) for worker, share in who.items())
    return total


def computed(log):
    """Steps that workers took, also those that were dropped."""
    return sum(event[2] for event in log if event[0] in ("applied", "held", "dropped"))


def switching(trainer, policies, every):
    """A callback that puts the next policy in force after so many batches; its logs."""
    made = [watched(policy) for policy in policies]
    upcoming = iter(made[1:])
    trainer.consistency = made[0][0]

    class Switch(keras.callbacks.Callback):
        reads_weights = False
        due = every

        def on_train_batch_end(self, batch, logs=None):
            if batch + 1 >= self.due and (following := next(upcoming, None)):
                self.due = batch + 1 + every
                trainer.consistency = following[0]

    return Switch(), [log for _, log in made]


def sequence():
    policies = ("async", "sync", "local", "bounded", "delayed", "sync", "async")
    return [POLICIES[name]() for name in policies]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "workers, overlap, steps",
    [
        (2, 2, 2),
        *[pytest.param(1, *case, marks=soak) for case in [(0, 2), (1, 1), (2, 1), (2, 2)]],
        *[pytest.param(2, *case, marks=soak) for case in [(0, 2), (1, 1), (2, 1)]],
    ],
)
def test_switching_in_an_epoch_loses_and_repeats_nothing(connect, workers, overlap, steps):
    model = Counting.compiled(o.SGD(1.0), steps_per_execution=steps)
    trainer = tfps.Trainer(model, connect(workers), overlap=overlap)
    switch, logs = switching(trainer, sequence(), every=10)
    x = np.ones([101, 1], np.float32)
    trainer.fit(x, x, batch_size=1, callbacks=[switch], verbose=0)
    assert int(model.batches) == 101
    assert all(logs), "each was in force"
    expected = sum(expected_sum(log) for log in logs)
    if workers == 1:
        assert expected == 101
    np.testing.assert_allclose(model.w, np.full(4, -expected), rtol=1e-6)
    assert trainer.stats["steps_per_second"][0] > 0


@pytest.mark.timeout(60)
def test_switching_between_epochs_loses_and_repeats_nothing(connect):
    model = Counting.compiled(o.SGD(1.0))
    trainer = tfps.Trainer(model, connect(2), overlap=2)
    x = np.ones([12, 1], np.float32)
    total, updates = 0, 0
    for make, each in ((tfps.Async, 12), (tfps.Sync, 6), (POLICIES["local"], 6), (tfps.Async, 12)):
        trainer.consistency = make()
        trainer.fit(x, x, batch_size=1, verbose=0)
        total += each
        updates += 3 if make is POLICIES["local"] else each
        np.testing.assert_array_equal(model.w, np.full(4, -float(total)))
        assert int(model.optimizer.iterations) == updates
    assert int(model.batches) == 4 * 12


class Slopes(keras.Model):
    """Gradients 1, 2, .. 64: what a codec leaves out can be told."""

    def build(self, shape):
        self.w = self.add_weight(shape=(64,), initializer="zeros")

    def call(self, x):
        return keras.ops.sum(self.w * keras.ops.arange(1.0, 65.0)) + 0.0 * x


@pytest.mark.timeout(60)
def test_what_a_codec_did_not_send_survives_a_switch(connect):
    model = Slopes()
    model.compile(o.SGD(0.5), loss=lambda y, p: p, jit_compile=False)
    trainer = tfps.Trainer(model, connect(2), push=compression.TopK(0.1, min_bytes=0))
    policies = sequence()
    switch, logs = switching(trainer, policies, every=6)
    x = np.ones([60, 1], np.float32)
    trainer.fit(x, x, batch_size=1, callbacks=[switch], verbose=0)
    arrived = -model.w.numpy()
    residual = np.zeros(64)
    for kind, memory in trainer.state.export().workers.items():
        for worker in memory:
            (feedback,) = [t for t in tf.nest.flatten(worker.residuals) if t.shape == (64,)]
            # Of gradients, or of differences that have the learning rate in them.
            residual += feedback * (1.0 if kind == "pseudo-gradients" else 0.5)
    assert np.abs(residual).max() > 0
    everything = sum(expected_sum(log) for log in logs) * 0.5 * np.arange(1.0, 65.0)
    np.testing.assert_allclose(arrived + residual, everything, rtol=1e-5)


# Ends.


@pytest.mark.timeout(60)
@policies("backup", "local")
def test_uneven_data_validation_and_several_steps_a_call(connect, policy):
    """Each worker's batches are used once an epoch, whoever else has run out."""
    batches = (11, 5)

    def dataset_fn(context):
        ones = np.ones([batches[context.worker_index], 1], np.float32)
        return tf.data.Dataset.from_tensor_slices((ones, ones)).batch(1)

    model = Counting.compiled(o.SGD(1.0), steps_per_execution=8)
    policy, log = watched(POLICIES[policy]())
    ends = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ends.append(batch)
    )
    watch.reads_weights = False
    history = tfps.Trainer(model, connect(2), policy).fit(
        dataset_fn, epochs=2, validation_data=dataset_fn, callbacks=[watch], verbose=0
    )
    assert computed(log) == 2 * sum(batches)
    np.testing.assert_allclose(model.w, np.full(4, -expected_sum(log)), rtol=1e-6)
    assert history.history["val_loss"][-1] == pytest.approx(4 * float(model.w[0]))
    assert ends[-1] == sum(batches) - 1
    if policy != tfps.Sync(backups=1):  # Whose late gradients are dropped.
        assert int(model.batches) == 2 * sum(batches)


@pytest.mark.timeout(60)
@policies("backup")
def test_a_callback_stops_the_training(connect, policy):
    model = Counting.compiled(o.SGD(1.0), steps_per_execution=8)

    class Stop(keras.callbacks.Callback):
        reads_weights = False

        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training |= batch >= 30

    policy, log = watched(POLICIES[policy]())
    x = np.ones([1000, 1], np.float32)
    trainer = tfps.Trainer(model, connect(2), policy, overlap=1)
    history = trainer.fit(x, x, batch_size=1, epochs=3, callbacks=[Stop()], verbose=0)
    assert len(history.history["loss"]) == 1
    assert 31 <= computed(log) <= 30 + 3 * 8  # What was under way is finished.
    np.testing.assert_allclose(model.w, np.full(4, -expected_sum(log)), rtol=1e-6)
    assert len(trainer.fit(x[:50], x[:50], batch_size=1, verbose=0).history["loss"]) == 1


# Staleness.


def histograms(directory):
    """Per epoch, float64 [n], pushes by the number of updates that they missed."""
    (path,) = glob.glob(f"{directory}/tfps/*")
    return [
        np.array(value.histo.bucket)
        for event in tf.compat.v1.train.summary_iterator(path)
        for value in event.summary.value
        if value.tag == "staleness"
    ]


@pytest.mark.parametrize(
    "workers, policy",
    [
        pytest.param(2, tfps.Async(), marks=soak),
        pytest.param(2, tfps.Sync(), marks=soak),
        pytest.param(3, tfps.Sync(1), marks=soak),
        (3, tfps.Async()),
    ],
    ids=["async2", "sync2", "backup3", "async3"],
)
def test_logs_agree_with_the_histogram(connect, tmp_path, workers, policy):
    x, y = regression(48)
    model = mlp()
    model.compile(o.SGD(0.01), "mse", jit_compile=False, steps_per_execution=8)
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    policy, log = watched(policy)
    # So that something is missed in any case, however the workers are scheduled.
    trainer = tfps.Trainer(model, connect(workers), policy, overlap=1)
    trainer.fit(x, y, batch_size=1, epochs=2, callbacks=[board], verbose=0)
    bins = histograms(tmp_path)
    assert len(bins) == 2
    for epoch, counts in enumerate(bins):
        mean, most = (trainer.stats[name][epoch] for name in ("staleness", "staleness_max"))
        assert most == np.flatnonzero(counts).max()
        assert mean == pytest.approx(counts @ np.arange(len(counts)) / counts.sum())
        if policy.in_rounds:
            assert most == 0
        else:
            assert counts.sum() == 48
            assert 0.9 < mean <= most
    if policy.in_rounds:
        pushes = sum(len(event[1]) for event in log if event[0] == "due")
        assert sum(counts.sum() for counts in bins) == pushes


def scaled_by_hand(model, x, y, delay, rate):
    """SGD on the weights of `delay` updates before, its rate divided by those missed."""
    past = [model.get_weights()]
    for i, begin in enumerate(range(0, len(x), 16)):
        missed = min(i, delay)
        model.set_weights(past[i - missed])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x[begin : begin + 16]) - y[begin : begin + 16]) ** 2)
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        now = rate(i) / max(1, missed)
        past.append([w - now * g.numpy() for w, g in zip(past[-1], gradients, strict=True)])
    model.set_weights(past[-1])
    return model


@covering(
    "scheduled, policy",
    [True, False],
    [tfps.Async(True), tfps.BoundedStaleness(3, True)],
    strength=1,
)
def test_the_rate_is_divided_by_the_staleness(connect, policy, scheduled):
    x, y = regression(320)
    schedule = o.schedules.ExponentialDecay(0.2, 5, 0.5)
    model = mlp()
    model.compile(o.SGD(schedule if scheduled else 0.2), "mse", jit_compile=False)
    trainer = tfps.Trainer(model, connect(1), policy, overlap=2)
    trainer.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    rate = (lambda i: float(schedule(i))) if scheduled else (lambda i: 0.2)
    expected = scaled_by_hand(mlp(), x, y, 2, rate)
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
