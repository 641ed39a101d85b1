"""All that training remembers: exported at a cut, restored elsewhere, and gone on with."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tfps.compression import OneBit, TopK

o = keras.optimizers
soak = pytest.mark.soak


def data():
    """Ten batches of 16, in a fixed order."""
    return tf.data.Dataset.from_tensor_slices(regression(160)).batch(16)


def compiled(seed):
    """A model whose weights, and whose dropout, follow from a seed."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input([8]),
            keras.layers.Dense(16, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1),
        ]
    )
    model.compile(o.Adam(0.01), "mse", jit_compile=False)
    return model


def trainer_on(connect, case, seed, ps=2):
    policy, workers, settings = CASES[case]
    strategy = connect(workers=workers, ps=ps)
    return tfps.Trainer(compiled(seed), strategy, policy(), **settings)


OUTER = o.SGD(0.7, momentum=0.9, nesterov=True)

# (policy, workers, further arguments of the trainer)
CASES = {
    "async": (tfps.Async, 1, {}),
    "feedback": (tfps.Async, 1, {"push": TopK(0.2, min_bytes=0), "overlap": 2}),
    "warm-up": (tfps.Async, 1, {"push": OneBit(min_bytes=0), "push_warmup": 6, "overlap": 2}),
    "sync": (tfps.Sync, 2, {}),
    "sync with feedback": (tfps.Sync, 2, {"push": TopK(0.2, min_bytes=0)}),
    "local steps": (lambda: tfps.LocalSteps(3, OUTER), 1, {}),
    "local steps each": (lambda: tfps.LocalSteps(3, OUTER, "each", delay=1), 1, {}),
}


# The other cases have all that these have, and more.
PLAIN = "async", "feedback", "sync", "local steps"


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=soak if case in PLAIN else []) for case in CASES],
)
def test_a_new_trainer_on_another_cluster_goes_on_bit_by_bit(connect, case):
    """The restored model began with other weights and other seeds."""
    unbroken = trainer_on(connect, case, seed=1)
    history = unbroken.fit(data(), epochs=2, verbose=0).history["loss"]
    exported = unbroken.state.export()
    history += unbroken.fit(data(), initial_epoch=2, epochs=4, verbose=0).history["loss"]
    # A process is connected to one cluster at a time: this leaves the first one, and comes back.
    connect(workers=CASES[case][1], ps=1)
    resumed = trainer_on(connect, case, seed=2)
    resumed.state.restore(exported)
    again = resumed.fit(data(), epochs=4, verbose=0)
    for a, b in zip(resumed.model.get_weights(), unbroken.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.epoch == [0, 1, 2, 3]
    np.testing.assert_array_equal(again.history["loss"], history)
    assert resumed.model.optimizer.iterations == unbroken.model.optimizer.iterations


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == "feedback" else soak) for case in CASES]
)
def test_an_export_between_two_parts_of_a_run_changes_nothing(connect, case):
    whole = trainer_on(connect, case, seed=1)
    history = whole.fit(data(), epochs=4, verbose=0).history["loss"]
    parts = trainer_on(connect, case, seed=1)
    in_parts = parts.fit(data(), epochs=2, verbose=0).history["loss"]
    parts.state.export()
    in_parts += parts.fit(data(), initial_epoch=2, epochs=4, verbose=0).history["loss"]
    for a, b in zip(parts.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(in_parts, history)


def test_a_worker_that_was_lost_at_the_cut_begins_without_memory(connect):
    trainer = trainer_on(connect, "sync with feedback", seed=1)
    trainer.fit(data(), epochs=1, verbose=0)
    exported = trainer.state.export()
    assert all(len(memory) == 2 for memory in exported.workers.values())
    exported.workers["gradients"][1] = None
    trainer.state.restore(exported)
    losses = trainer.fit(data(), epochs=2, verbose=0).history["loss"]
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.parametrize("ps", [3, pytest.param(1, marks=soak)])
def test_another_number_of_servers(connect, ps):
    first = trainer_on(connect, "async", seed=1)
    first.fit(data(), epochs=2, verbose=0)
    exported = first.state.export()
    first.fit(data(), epochs=2, verbose=0)
    expected = first.model.get_weights()
    second = trainer_on(connect, "async", seed=2, ps=ps)
    second.state.restore(exported)
    second.fit(data(), epochs=4, verbose=0)
    for a, b in zip(second.model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fed", ["chief", "workers"])
def test_the_position_in_the_data_goes_on(connect, fed):
    """Epochs of 4 batches in a pass of 10: the second half of the first pass is still to come."""
    strategy = connect(workers=1, ps=1)
    values = np.exp2(np.arange(10, dtype=np.float32))[:, None]
    dataset = tf.data.Dataset.from_tensor_slices((values, values)).batch(1)
    inputs = dataset if fed == "chief" else lambda context: dataset

    def summing():
        """A trainer of one weight, from which every batch takes its own power of two."""
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input([1]), layer])
        model.compile(o.SGD(1.0), loss=lambda y, p: p, jit_compile=False)
        return tfps.Trainer(model, strategy)

    seen = []

    class Cut(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(trainer.state.export())

    trainer = summing()
    trainer.fit(inputs, epochs=2, steps_per_epoch=4, verbose=0, callbacks=[Cut()])
    assert [e.chief.position.batches for e in seen] == [(4,), (8,)]
    assert [e.chief.epoch for e in seen] == [1, 2]
    assert [[number for number, _ in e.chief.history] for e in seen] == [[0], [0, 1]]
    resumed = summing()
    resumed.state.restore(seen[0])
    taken = []

    class Spy(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            taken.append(logs["loss"])

    resumed.fit(inputs, epochs=2, steps_per_epoch=4, verbose=0, callbacks=[Spy()])
    assert len(taken) == 4  # One epoch of two is over.
    assert trainer.model.get_weights()[0] == resumed.model.get_weights()[0] == -255
    assert resumed.state.export().chief.position.batches == (8,)


def test_what_is_listed_and_when_and_of_which_layout(connect):
    """Every part has a name and a type, and nothing in it lives on a server or a worker.

    Residuals lie by bucket, so they cannot go to another number of servers, and that is said.
    """
    trainer = trainer_on(connect, "feedback", seed=1)
    trainer.model.optimizer.learning_rate = 0.02
    trainer.fit(data(), verbose=0)
    exported = trainer.state.export()
    assert exported._fields == ("servers", "sides", "workers", "layout", "chief", "own")
    assert set(exported.workers) == {"gradients"}
    assert len(exported.workers["gradients"]) == 1
    assert exported.servers.optimizer.scalars["iterations"] == 10
    assert {"momentums", "velocities"} <= set(exported.servers.optimizer.slots[0])
    assert exported.chief.step_number == 10
    assert exported.chief.learning_rate == pytest.approx(0.02)
    leaves = tf.nest.flatten([exported.servers.values, exported.workers, exported.chief.seeds])
    assert leaves and all(isinstance(leaf, np.ndarray) for leaf in leaves)

    class InBatch(keras.callbacks.Callback):
        """No call of the one worker is pending then, but the epoch is not over."""

        def on_train_batch_end(self, batch, logs=None):
            trainer.state.export()

    with pytest.raises(tfps.ConfigError, match="middle of an epoch"):
        trainer.fit(data(), verbose=0, callbacks=[InBatch()])

    other = trainer_on(connect, "feedback", seed=2, ps=1)
    other.state.restore(exported)
    with pytest.raises(tfps.ConfigError, match="with as many servers"):
        other.fit(data(), verbose=0)


def test_what_cannot_be_exported_or_restored(connect):
    trainer = tfps.Trainer(compiled(1), connect())
    with pytest.raises(tfps.ConfigError, match="not on the servers yet"):
        trainer.state.export()

    class InBatch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                trainer.state.export()

    two = tfps.Trainer(compiled(1), connect(workers=2))
    trainer = two
    with pytest.raises(tfps.ConfigError, match=r"middle of an epoch.*on_epoch_end"):
        two.fit(data(), verbose=0, callbacks=[InBatch()])
    two.fit(data(), verbose=0)
    exported = two.state.export()
    one = tfps.Trainer(compiled(1), connect(workers=1))
    with pytest.raises(tfps.ConfigError, match="of 2 workers, but there are 1"):
        one.state.restore(exported)


def test_a_restored_state_is_gone_on_with_once(connect):
    """A later `fit` begins with its own first epoch, as in Keras."""
    trainer = trainer_on(connect, "async", seed=1)
    trainer.fit(data(), epochs=2, verbose=0)
    trainer.state.restore(trainer.state.export())
    assert trainer.fit(data(), epochs=3, verbose=0).epoch == [0, 1, 2]
    assert trainer.state.chief.step_number == 30
    assert trainer.fit(data(), epochs=1, verbose=0).epoch == [0]


def test_models_of_another_shape_are_refused(connect):
    trainer = trainer_on(connect, "async", seed=1)
    trainer.fit(data(), verbose=0)
    other = mlp(units=4)
    other.compile(o.Adam(0.01), "mse")
    second = tfps.Trainer(other, connect())
    second.state.restore(trainer.state.export())
    for _ in range(2):  # Nor is a second try training from scratch.
        with pytest.raises(tfps.ConfigError):
            second.fit(data(), verbose=0)


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch >= 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("case", ["feedback", "local steps each"])
def test_what_workers_remember_survives_an_interrupt(connect, case):
    trainer = trainer_on(connect, case, seed=1)
    trainer.fit(data(), verbose=0)
    ((kind, (before,)),) = trainer.state.export().workers.items()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(data(), verbose=0, callbacks=[Interrupt()])
    assert not trainer.state.carries
    (after,) = trainer.state.export().workers[kind]
    assert [np.shape(t) for t in tf.nest.flatten(after)] == [
        np.shape(t) for t in tf.nest.flatten(before)
    ]
    if after.inner:  # Its own Adam has counted on.
        counts = [max(int(t) for t in m.inner if np.shape(t) == ()) for m in (before, after)]
        assert counts[1] > counts[0] > 0


def test_history_has_what_callbacks_add_and_the_epochs_of_before(connect):
    trainer = trainer_on(connect, "async", seed=1)
    reduce = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    trainer.fit(data(), initial_epoch=1, epochs=3, verbose=0, callbacks=[reduce])
    exported = trainer.state.export()
    resumed = trainer_on(connect, "async", seed=2)
    resumed.state.restore(exported)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append((epoch, int(self.model.optimizer.iterations)))

    history = resumed.fit(data(), epochs=5, verbose=0, callbacks=[reduce, Look()])
    assert history.epoch == [1, 2, 3, 4]
    np.testing.assert_allclose(history.history["learning_rate"], [0.005 / 2**i for i in range(4)])
    assert seen == [(3, 20), (4, 30)]


def test_a_state_is_restored_between_fits_only(connect):
    trainer = trainer_on(connect, "async", seed=1)
    trainer.fit(data(), verbose=0)
    best = trainer.state.export()

    class Rollback(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            trainer.state.restore(best)

    with pytest.raises(tfps.ConfigError, match="while fit runs"):
        trainer.fit(data(), verbose=0, callbacks=[Rollback()])
    trainer.state.restore(best)
    assert trainer.state.export() is best  # It waits for the next method of the trainer.
    loss = trainer.evaluate(data(), verbose=0)
    other = trainer_on(connect, "async", seed=2)
    other.state.restore(best)
    assert other.evaluate(data(), verbose=0) == loss
    other.fit(data(), epochs=2, verbose=0)
    assert other.state.chief.step_number == 20


def test_outer_optimizers_go_on_with_their_slots_and_rates(connect):
    """Also when another policy was in force in between."""

    def local(rate):
        return tfps.LocalSteps(2, o.SGD(rate, momentum=0.9), "each")

    policy = local(0.7)
    trainer = tfps.Trainer(compiled(1), connect(), policy)
    trainer.fit(data(), verbose=0)
    policy.outer.learning_rate = 0.5
    first = trainer.state.export()
    second = tfps.Trainer(compiled(2), connect())  # Asynchronous.
    second.state.restore(first)
    second.fit(data(), epochs=2, verbose=0)
    again = second.state.export()
    assert again.sides.keys() > first.sides.keys()
    third = tfps.Trainer(compiled(3), connect(), local(0.7))
    third.state.restore(again)
    third.fit(data().take(0).concatenate(data()), epochs=3, verbose=0)
    assert float(third.consistency.outer.learning_rate) == 0.5
    trainer.consistency = local(0.7)
    trainer.fit(data(), verbose=0)
    with pytest.raises(tfps.ConfigError, match="equal settings"):
        trainer.state.export()
