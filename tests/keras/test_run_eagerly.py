"""`run_eagerly=True`: slow, but the user's code sees tensors that have `numpy()`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression, relative_error

o = keras.optimizers
ARGS = {"batch_size": 16, "shuffle": False, "verbose": 0, "epochs": 2}


class Peeking(keras.Sequential):
    """Looks at values in its step, as somebody does who debugs it."""

    def train_step(self, data):
        self.__dict__.setdefault("peeked", []).append(float(data[0].numpy().sum()))
        logs = super().train_step(data)
        return {**logs, "twice": 2 * float(logs["loss"]), "largest": float(data[0].numpy().max())}

    def call(self, x, training=None):
        if x.numpy().sum() > 1e9:  # Python's own condition.
            raise ValueError("unreachable")
        return super().call(x, training=training)


def made(cls=Peeking, **compile_args):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.BatchNormalization()]
    model = cls([*layers, keras.layers.Dense(1)])  # Unbuilt.
    model.compile(o.Adam(0.01), "mse", metrics=["mae"], run_eagerly=True, **compile_args)
    return model


@pytest.mark.parametrize(
    "consistency",
    [pytest.param(None, marks=pytest.mark.soak), tfps.Sync()],
    ids=["async", "sync"],
)
def test_one_worker_equals_keras_op_by_op(connect, consistency):
    strategy = connect()
    x, y = regression(80)
    model, reference = made(), made()
    trainer = tfps.Trainer(model, strategy, consistency)
    with pytest.warns(UserWarning, match="op by op"):
        mine = trainer.fit(x, y, validation_data=(x[:32], y[:32]), **ARGS).history
    theirs = reference.fit(x, y, validation_data=(x[:32], y[:32]), **ARGS).history
    assert relative_error(model, reference) < 1e-6
    assert mine.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6)
    # Each batch, and the first one before: to build the model, and to see what the step does.
    assert model.peeked[-10:] == pytest.approx(reference.peeked, rel=1e-5)
    np.testing.assert_allclose(
        trainer.predict(x, verbose=0), reference.predict(x, verbose=0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:the model was compiled with run_eagerly")
def test_several_workers_and_datasets_on_them(connect):
    strategy = connect(2)
    x, y = regression(64)

    def dataset_fn(context):
        mine = slice(context.worker_index, None, context.num_workers)
        return tf.data.Dataset.from_tensor_slices((x[mine], y[mine])).batch(16)

    model = made(steps_per_execution=2)
    trainer = tfps.Trainer(model, strategy, tfps.Sync())
    losses = trainer.fit(dataset_fn, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert int(model.optimizer.iterations) == 6


@pytest.mark.filterwarnings("ignore:the model was compiled with run_eagerly")
def test_local_steps_do_not_go_with_it(connect):
    strategy = connect()
    x, y = regression(32)
    trainer = tfps.Trainer(made(), strategy, tfps.LocalSteps(2))
    with pytest.raises(tfps.ConfigError, match="does not go with LocalSteps"):
        trainer.fit(x, y, verbose=0)


def test_functions_that_run_eagerly_change_nothing(connect):
    strategy = connect()
    x, y = regression(64)
    models = []
    for eagerly in (False, True):
        model = mlp()
        model.compile(o.SGD(0.1), "mse", jit_compile=False)
        tf.config.run_functions_eagerly(eagerly)
        try:
            tfps.Trainer(model, strategy).fit(x, y, **ARGS)
        finally:
            tf.config.run_functions_eagerly(False)
        models.append(model)
    assert relative_error(*models) < 1e-6


class Parsed(keras.Model):
    """Its input is text, and images larger than its windows; made-up ones would not do."""

    def __init__(self):
        super().__init__()
        self.window = keras.layers.Conv2D(2, 5)
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        if not x["text"].numpy()[0, 0]:
            raise ValueError("a text is empty")
        numbers = tf.strings.to_number(x["text"])
        seen = tf.reduce_mean(self.window(x["image"]), [1, 2])
        return self.dense(tf.concat([numbers, seen], -1))


class Listed(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 4

    def __getitem__(self, index):
        part = slice(8 * index, 8 * index + 8)
        return {name: a[part] for name, a in self.x.items()}, self.y[part]


@pytest.mark.parametrize("form", ["arrays", "dataset", "shuffled", "PyDataset", "generator"])
def test_the_step_is_looked_at_with_a_batch_of_the_input(connect, form):
    strategy = connect()
    y, _ = regression(32)
    y = y[:, :1]
    x = {
        "text": tf.strings.as_string(y),
        "image": np.random.default_rng(0).normal(size=(32, 6, 7, 1)).astype("float32"),
    }

    def data():
        if form == "arrays":
            return {"x": x, "y": y, "batch_size": 8, "shuffle": False}
        if form == "PyDataset":
            return {"x": Listed(x, y), "shuffle": False}
        sliced = tf.data.Dataset.from_tensor_slices((x, y))
        if form == "shuffled":
            return {"x": sliced.shuffle(32, seed=3).batch(8)}
        if form == "dataset":
            spec = sliced.batch(8).element_spec
            relaxed = {n: tf.TensorSpec([None] * s.shape.rank, s.dtype) for n, s in spec[0].items()}
            relaxed["image"] = tf.TensorSpec([None, None, None, 1], tf.float32)
            once = iter(list(sliced.batch(8)) * 3)  # What is read is gone.
            made = tf.data.Dataset.from_generator(lambda: once, output_signature=(relaxed, spec[1]))
            return {"x": made, "steps_per_epoch": 4}
        return {"x": (one for one in list(sliced.batch(8)) * 3), "steps_per_epoch": 4}

    found = []
    for is_ours in (True, False):
        keras.utils.set_random_seed(1)
        model = Parsed()
        model.compile(o.SGD(0.05), "mse", run_eagerly=True)
        one = tfps.Trainer(model, strategy) if is_ours else model
        history = one.fit(**data(), epochs=2, verbose=0).history["loss"]
        found.append((history, model.get_weights()))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_metrics_that_are_compiled_anew_are_of_all_workers(connect):
    x, y = regression(64)
    model = made()
    trainer = tfps.Trainer(model, connect(workers=2), tfps.Sync())
    trainer.fit(x, y, **ARGS)
    model.compile(o.SGD(0.0), "mse", metrics=["mae"], run_eagerly=True)
    logs = trainer.fit(x, y, validation_data=(x, y), **{**ARGS, "epochs": 1}).history
    model.compile(o.SGD(0.0), "mse", metrics=["mae"], run_eagerly=True)
    assert logs["val_mae"][0] == pytest.approx(model.evaluate(x, y, verbose=0)[1], rel=1e-5)
