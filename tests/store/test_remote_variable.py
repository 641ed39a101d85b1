"""Variables that never exist on the chief, and rows that travel by themselves."""

import keras
import numpy as np
import pytest

import tfps
from tfps.store.remote_variable import RemoteVariable

soak = pytest.mark.soak


def model(initializer="uniform", rows=90, **kwargs):
    return keras.Sequential(
        [
            keras.Input([6], dtype="int32"),
            keras.layers.Embedding(rows, 8, embeddings_initializer=initializer, **kwargs),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )


def data(rows=90):
    ids = np.random.default_rng(0).integers(0, rows, (320, 6))
    return ids, np.sin(ids.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def strategy(connect):
    made = connect(workers=2, ps=2)
    made._max_chief_bytes = 1000
    return made


def test_large_variables_are_made_on_the_servers(strategy):
    with strategy.scope():
        net = model()
    value = net.layers[0]._embeddings.value
    assert isinstance(value, RemoteVariable)
    assert [p.device.split("/task:")[1][0] for p in value.parts] == ["0", "1"]
    assert [tuple(p.shape) for p in value.parts] == [(45, 8), (45, 8)]
    assert not isinstance(net.layers[-1].kernel.value, RemoteVariable)
    assert not np.array_equal(value.parts[0].numpy(), value.parts[1].numpy())


@pytest.mark.parametrize(
    "initializer", ["glorot_uniform", "he_normal", "random_normal", "zeros", "ones"]
)
def test_parts_have_the_distribution_of_the_whole(strategy, initializer):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        value = model(initializer, rows=3000).layers[0].get_weights()[0]
    whole = keras.initializers.get(initializer)((3000, 8))
    np.testing.assert_allclose(value.std(), np.std(whole), rtol=0.03, atol=1e-9)
    np.testing.assert_allclose(value.mean(), np.mean(whole), atol=0.05 * value.std() + 1e-9)


def test_an_initializer_that_needs_the_whole_is_refused(strategy):
    with strategy.scope(), pytest.raises(tfps.ConfigError, match=r"Orthogonal.*max_chief_bytes"):
        model("orthogonal")


@pytest.mark.parametrize("sparse_updates", ["exact", pytest.param("lazy", marks=soak)])
def test_it_trains_like_a_variable_of_the_chief(strategy, sparse_updates, tmp_path):
    with strategy.scope():
        net = model()
    reference = model()
    reference.set_weights(net.get_weights())
    ids, y = data()
    for m in (net, reference):
        m.compile(keras.optimizers.SGD(0.1), "mse")
    trainer = tfps.Trainer(net, strategy, sparse_updates=sparse_updates)
    order = {"batch_size": 320, "epochs": 5, "shuffle": False, "verbose": 0}
    trainer.fit(ids, y, **order)
    reference.fit(ids, y, **order)
    for a, b in zip(net.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        trainer.predict(ids, verbose=0), reference.predict(ids, verbose=0), rtol=1e-4, atol=1e-5
    )
    assert trainer.evaluate(ids, y, verbose=0) == pytest.approx(
        reference.evaluate(ids, y, verbose=0), rel=1e-4
    )
    net.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.get_weights()[0], net.get_weights()[0])


def test_values_set_by_the_user_are_trained_on(strategy):
    with strategy.scope():
        net = model()
    net.compile(keras.optimizers.SGD(0.0), "mse")
    weights = [np.full_like(w, 0.5) for w in net.get_weights()]
    net.set_weights(weights)
    ids, y = data()
    tfps.Trainer(net, strategy).fit(ids, y, verbose=0)
    np.testing.assert_array_equal(net.get_weights()[0], weights[0])


@pytest.mark.parametrize("sparse_updates", [pytest.param("exact", marks=soak), "lazy"])
def test_its_slots_go_on_and_are_saved(strategy, sparse_updates, tmp_path):
    """They stay on the servers, where another Trainer finds them."""
    with strategy.scope():
        net = model()
    reference = model()
    reference.set_weights(net.get_weights())
    ids, y = data()
    order = {"batch_size": 320, "epochs": 2, "shuffle": False, "verbose": 0}
    for m in (net, reference):
        m.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    trainer = tfps.Trainer(net, strategy, sparse_updates=sparse_updates)
    trainer.fit(ids, y, **order)
    trainer.fit(ids, y, **order)
    trainer = tfps.Trainer(net, strategy, sparse_updates=sparse_updates)
    trainer.fit(ids, y, **order)
    for _ in range(3):
        reference.fit(ids, y, **order)
    (momentum,) = [v for v in net.optimizer.variables if v.path.endswith("embeddings_momentum")]
    assert isinstance(momentum.value, RemoteVariable)
    net.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    pairs = zip(loaded.optimizer.variables, reference.optimizer.variables, strict=True)
    for a, b in [*pairs, *zip(loaded.weights, reference.weights, strict=True)]:
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6, err_msg=a.path)
