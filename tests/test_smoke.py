"""The shortest test with servers: what a user does first, beside plain Keras."""

import keras
import numpy as np
import pytest

import tfps
from tests.conftest import mlp, regression, relative_error


@pytest.mark.smoke
def test_fit_evaluate_and_predict_equal_plain_keras(connect):
    """Two synchronous workers are one process with both batches as one."""
    x, y = regression(160)
    models = [mlp(), mlp()]
    for model in models:
        model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], jit_compile=False)
    trainer = tfps.Trainer(models[0], connect(workers=2, ps=2), tfps.Sync())
    plain = models[1]
    arguments = {"epochs": 2, "shuffle": False, "verbose": 0}
    mine = trainer.fit(x, y, batch_size=8, validation_data=(x, y), **arguments).history
    theirs = plain.fit(x, y, batch_size=16, validation_data=(x, y), **arguments).history
    for name in theirs:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5)
    assert relative_error(*models) < 1e-5
    np.testing.assert_allclose(
        trainer.evaluate(x, y, batch_size=8, verbose=0),
        plain.evaluate(x, y, batch_size=8, verbose=0),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        trainer.predict(x, batch_size=8, verbose=0),
        plain.predict(x, batch_size=8, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )
