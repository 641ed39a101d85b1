"""Input that ends too soon, or has nothing, and callbacks that are no `Callback`: as in Keras."""

from unittest import mock

import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression


def both(strategy):
    """A Trainer and plain Keras."""
    made = []
    for run in ("tfps", "keras"):
        model = mlp()
        model.compile("sgd", "mse", jit_compile=False)
        made.append(tfps.Trainer(model, strategy) if run == "tfps" else model)
    return made


def test_validation_data_without_a_batch(connect):
    runs, histories = both(connect()), []
    data = tf.data.Dataset.from_tensor_slices(regression(32)).batch(16)
    for one in runs:
        with pytest.warns(UserWarning, match="Your input ran out of data"):
            run = one.fit(data, epochs=3, validation_data=data.skip(10**6), verbose=0)
        histories.append(run.history)
    assert histories[0].keys() == histories[1].keys() == {"loss"}
    assert len(histories[0]["loss"]) == 3


def test_data_that_runs_out(connect):
    runs = both(connect())
    data = tf.data.Dataset.from_tensor_slices(regression(32)).batch(16)
    for one in runs:
        for call in (one.fit, one.evaluate):
            steps = "steps_per_epoch" if call == one.fit else "steps"
            with pytest.warns(UserWarning, match="Your input ran out of data; interrupting"):
                call(data, **{steps: 5}, verbose=0)
    with pytest.warns(UserWarning, match=r"`steps` batches in .* after 2 of 5 batches"):
        runs[0].evaluate(data, steps=5, verbose=0)


def test_a_mock_is_a_callback(connect):
    x, y = regression(32)
    calls = []
    for one in both(connect()):
        callback = mock.MagicMock()
        one.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[callback])
        calls.append([name for name, _, _ in callback.method_calls if name.startswith("on_")])
    assert calls[0] == calls[1]
    assert "on_train_batch_end" in calls[0]
