"""While `fit` runs, a Keras variable is brought when somebody looks at it, and only then."""

import copy
import pickle
import queue
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tfps.store.columns import Column

c = keras.callbacks
soak = pytest.mark.soak
o = keras.optimizers
ORDER = {"batch_size": 16, "shuffle": False, "verbose": 0}


def compiled(optimizer=None):
    model = mlp()
    model.compile(optimizer or o.SGD(0.1, momentum=0.9), "mse", jit_compile=False)
    return model


@pytest.fixture
def reads(monkeypatch):
    """Grows by the number of the variable for each read of a column from the servers."""
    found = []
    original = Column.read

    def read(self, i):
        found.append(i)
        return original(self, i)

    monkeypatch.setattr(Column, "read", read)
    return found


def seen_by(fit, model, look):
    """What `look(model)` returns in each hook: after batches, at the beginning and end of epochs.

    Args:
      fit: of the model or of its trainer.
      model: which is trained.
      look: a function.
    """
    seen = []
    hooks = dict.fromkeys(
        ["on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_epoch_end"],
        lambda index, logs: seen.append(np.array(look(model))),
    )
    x, y = regression(64)
    fit(x, y, epochs=2, callbacks=[c.LambdaCallback(**hooks)], **ORDER)
    return np.array(seen)


def assert_seen_as_in_keras(connect, make_look, before=lambda model: None):
    seen = []
    for run in ("tfps", "keras"):
        model = compiled()
        before(model)
        fit = tfps.Trainer(model, connect()).fit if run == "tfps" else model.fit
        seen.append(seen_by(fit, model, make_look(model)))
    assert len(np.unique(seen[1], axis=0)) > 8  # Training does change what is looked at.
    np.testing.assert_allclose(*seen, rtol=1e-4, atol=1e-6)


def test_a_callback_that_does_not_look_costs_no_read(connect, reads):
    x, y = regression(64)
    counts = []

    class Silent(c.Callback):
        def on_train_batch_end(self, batch, logs=None):
            counts.append((len(reads), int(self.model.optimizer.iterations)))

    model = compiled()
    tfps.Trainer(model, connect()).fit(x, y, epochs=2, callbacks=[Silent()], **ORDER)
    assert [n for n, _ in counts[:4]] == [counts[0][0]] * 4
    assert [n for n, _ in counts[4:]] == [counts[4][0]] * 4
    assert [i for _, i in counts] == list(range(1, 9))


def test_one_variable_is_looked_at_alone(connect, reads):
    """As far as variables do not share a bucket."""
    x, y = regression(64)
    counts = []

    class Look(c.Callback):
        reads_weights = False  # Says nothing any more.

        def on_train_batch_end(self, batch, logs=None):
            before = len(reads)
            for _ in range(3):
                self.model.layers[0].kernel.numpy()
            counts.append(len(reads) - before)

    tfps.Trainer(compiled(), connect()).fit(x, y, callbacks=[Look()], **ORDER)
    assert counts == [1] * 4


LOOKS = {
    "get_weights": lambda model: model.get_weights()[0],
    "ops": lambda model: keras.ops.sum(model.layers[1].kernel) + 1,
    "call": lambda model: model(np.ones([2, 8], "float32")),
    "predict": lambda model: model.predict(np.ones([2, 8], "float32"), verbose=0),
    "evaluate": lambda model: model.evaluate(*regression(4), verbose=0),
    "pickle": lambda model: pickle.loads(pickle.dumps(model.layers[0].kernel)),
    "copy": lambda model: copy.deepcopy(model.layers[0].kernel),
    "slot": lambda model: model.optimizer.learning_rate * model.optimizer.variables[2],
}


@pytest.mark.parametrize(
    "look",
    [
        pytest.param(look, id=name, marks=[] if name in ("pickle", "slot") else soak)
        for name, look in LOOKS.items()
    ],
)
def test_what_hooks_see_is_what_they_see_in_keras(connect, look):
    def make_look(model):
        model.optimizer.build(model.trainable_variables)
        return look

    assert_seen_as_in_keras(connect, make_look)


def test_functions_that_a_hook_traces_see_the_weights_of_now(connect):
    def make_look(model):
        return tf.function(lambda m: 2 * m.layers[0].kernel)

    assert_seen_as_in_keras(connect, make_look)


def test_functions_traced_before_fit_see_the_weights_of_now(connect):
    def make_look(model):
        ones = np.ones([2, 8], "float32")
        call = tf.function(lambda: model(ones))
        call()
        return lambda m: call()

    assert_seen_as_in_keras(connect, make_look)


def test_keras_functions_made_before_fit_see_the_weights_of_now(connect):
    ones = np.ones([2, 8], "float32")

    def before(model):
        model.predict(ones, verbose=0)
        model.evaluate(ones, ones[:, :1], verbose=0)

    assert_seen_as_in_keras(
        connect, lambda model: lambda m: m.predict(ones, verbose=0)[:, 0], before
    )


def test_a_function_that_assigns(connect):
    x, y = regression(64)
    models = [compiled(), compiled()]
    trainer = tfps.Trainer(models[0], connect())
    for model, fit in zip(models, (trainer.fit, models[1].fit), strict=True):

        @tf.function
        def halve(model=model):
            model.layers[0].kernel.assign(model.layers[0].kernel * 0.5)

        halving = c.LambdaCallback(on_train_batch_end=lambda b, logs, f=halve: f())
        fit(x, y, epochs=2, callbacks=[halving], **ORDER)
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_one_variable_of_a_bucket_is_set_and_the_others_go_on(connect):
    x, y = regression(64)
    models = [compiled(), compiled()]
    trainer = tfps.Trainer(models[0], connect(ps=1))

    class Set(c.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.layers[0].bias.assign(np.full(16, 0.1 * batch))

    for fit in (trainer.fit, models[1].fit):
        fit(x, y, epochs=2, callbacks=[Set()], **ORDER)
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_what_is_set_while_other_workers_push_is_not_lost(connect):
    """The rate is 0, so that whatever the last push read, it would write the old values back."""
    x, y = regression(640)
    model = compiled(o.SGD(0.0))

    class Set(c.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.layers[0].kernel.assign(np.full([8, 16], batch))
            self.last = batch

        def on_epoch_end(self, epoch, logs=None):
            assert (self.model.layers[0].kernel.numpy() == self.last).all()

    tfps.Trainer(model, connect(4)).fit(x, y, epochs=3, callbacks=[Set()], **ORDER)
    np.testing.assert_array_equal(model.layers[0].kernel, np.full([8, 16], 39.0))


def test_what_a_thread_sets_during_a_step_is_not_lost_to_a_look(connect):
    """A look brings all that lies beside the variable, as the servers have it."""
    x, y = regression(640)
    model = compiled(o.SGD(0.0))
    first, begun, seen = model.layers[0], queue.SimpleQueue(), []
    assigned = -1.0

    def assign():
        nonlocal assigned
        while (batch := begun.get()) is not None:
            first.bias.assign(np.full(16, batch))
            assigned = batch

    class Look(c.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            begun.put(float(batch))

        def on_train_batch_end(self, batch, logs=None):
            while assigned != batch:  # Mostly, it is assigned before this hook begins.
                time.sleep(0.001)
            first.kernel.numpy()
            seen.append((first.bias.numpy() == batch).all())

    thread = threading.Thread(target=assign, daemon=True)
    thread.start()
    tfps.Trainer(model, connect(ps=1)).fit(x, y, callbacks=[Look()], **ORDER)
    begun.put(None)
    thread.join(20)
    assert len(seen) == 40 and all(seen)
    np.testing.assert_array_equal(first.bias, np.full(16, 39.0))


def test_checkpoints_of_tensorflow(connect, tmp_path):
    x, y = regression(64)
    model = compiled()
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    seen = {}

    class Save(c.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                seen["path"] = checkpoint.write(str(tmp_path / "c"))
                seen["weights"] = self.model.get_weights()
            if epoch == 2:
                checkpoint.read(seen["path"])
                seen["again"] = self.model.get_weights()
                self.model.optimizer.learning_rate = 0.0

    trainer = tfps.Trainer(model, connect())
    model.optimizer.momentum = 0.0
    trainer.fit(x, y, epochs=4, callbacks=[Save()], **ORDER)
    for a, b, d in zip(seen["weights"], seen["again"], model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, d)


def test_variables_are_of_their_own_class_before_and_after(connect):
    x, y = regression(64)
    strategy = connect()
    model = compiled()
    kinds = []

    class Look(c.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = self.model.layers[0].kernel
            kinds.append((isinstance(kernel, keras.Variable), type(kernel).__name__))
            again = copy.copy(kernel)
            assert type(again) is keras.Variable
            np.testing.assert_array_equal(again, kernel)
            if batch == 2:
                raise RuntimeError("stopped")

    handles = [v.value.handle for v in model.weights]
    with pytest.raises(RuntimeError, match="stopped"):
        tfps.Trainer(model, strategy).fit(x, y, callbacks=[Look()], **ORDER)
    assert kinds == [(True, "Variable")] * 3
    assert {type(v) for v in [*model.weights, *model.optimizer.variables]} == {keras.Variable}
    for v, handle in zip(model.weights, handles, strict=True):
        assert v.value.handle is handle


def test_threads_may_look(connect):
    """At any time: what they see is what the servers have by then."""
    x, y = regression(640)
    model = compiled()
    ended, seen = threading.Event(), []

    def watch():
        while not ended.is_set():
            seen.append(model.get_weights()[0].copy())

    thread = threading.Thread(target=watch, daemon=True)
    begin = c.LambdaCallback(on_train_batch_begin=lambda b, logs: b == 0 and thread.start())
    tfps.Trainer(model, connect(2)).fit(x, y, callbacks=[begin], **ORDER)
    ended.set()
    thread.join(20)
    assert seen and all(np.isfinite(w).all() and w.shape == (8, 16) for w in seen)
