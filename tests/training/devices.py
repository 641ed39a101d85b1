"""What the tests of workers with several devices share; clusters have three devices a worker."""

import keras
import numpy as np

import tfps
from tests.conftest import relative_error
from tfps import _tf_placement

ROUNDING = 1e-6


def compiled(model, optimizer=None, jit_compile=False, loss="mse", **arguments):
    model.compile(
        optimizer or keras.optimizers.Adam(1e-2), loss, jit_compile=jit_compile, **arguments
    )
    return model


def trained(connect, model, devices, x, y=None, workers=1, **arguments):
    """(history, trainer) after two epochs without shuffling."""
    fit = {n: arguments.pop(n) for n in ("sample_weight", "validation_data") if n in arguments}
    strategy = connect(workers, 2, cpu_devices=3)
    trainer = tfps.Trainer(model, strategy, devices_per_worker=devices, **arguments)
    history = trainer.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0, **fit)
    return history.history, trainer


def assert_as_one(connect, make, x, y, devices=3, rounding=ROUNDING, inference=False, **arguments):
    """Trains `make()` on one device and on several, and compares weights and logs.

    With `inference`, it also compares an evaluation and predictions.
    """
    one, several = make(), make()
    if inference:
        arguments["validation_data"] = (x, y)
    expected, alone = trained(connect, one, 1, x, y, **arguments)
    history, trainer = trained(connect, several, devices, x, y, **arguments)
    assert relative_error(several, one) < rounding
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    if not inference:
        return
    part = keras.tree.map_structure(lambda t: t[:5], x)
    np.testing.assert_allclose(
        trainer.predict(part, batch_size=2, verbose=0),
        alone.predict(part, batch_size=2, verbose=0),
        rtol=1e-4,
        atol=1e-5,
    )


def products(trainer, x, y):
    """Device -> how many matrix products a step of training computes there."""
    session = trainer._session
    session.prepare(feed := session.feed(x, None, y=y, batch_size=32), train=True)
    side = session.enter(trainer.consistency, False)
    step = session.steps.training(side, trainer.consistency, feed)
    found = {}
    for op in _tf_placement.operations(step._run.graph):
        if op.type == "MatMul":
            device = op.device.rpartition("device:")[2]
            found[device] = found.get(device, 0) + 1
    return found
