"""Input that Python makes: generators that are used again, and PyDatasets, beside Keras."""

import threading
import time

import keras

import tfps
from tests.conftest import mlp, regression, relative_error


def slow(x, y):
    """An endless generator of batches, each of which takes its time."""
    while True:
        for i in range(0, len(x), 8):
            time.sleep(0.05)
            yield x[i : i + 8], y[i : i + 8]


def pair(strategy, make=mlp, **given):
    """(a Trainer, plain Keras), with the same weights."""
    models = [make(), make()]
    for model in models:
        model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False, **given)
    return tfps.Trainer(models[0], strategy), models[1]


def test_a_generator_is_used_again(connect):
    x, y = regression(64)
    for one in pair(connect()):
        data, other = slow(x, y), slow(x, y)
        for _ in range(2):
            one.fit(data, steps_per_epoch=3, verbose=0)
        one.evaluate(data, steps=2, verbose=0)
        assert len(one.predict(data, steps=2, verbose=0)) == 16
        validation = {"validation_data": other, "validation_steps": 2}
        one.fit(data, steps_per_epoch=3, epochs=3, verbose=0, **validation)
        one.evaluate(other, steps=2, verbose=0)


class Slow(keras.utils.PyDataset):
    """It notes whether two threads ask it for a batch at once."""

    def __init__(self, x, y, **given):
        super().__init__(**given)
        self.x, self.y, self.lock, self.overlaps = x, y, threading.Lock(), 0

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.overlaps += not self.lock.acquire(blocking=False)
        time.sleep(0.05)
        if self.lock.locked():
            self.lock.release()
        return self.x[8 * index : 8 * index + 8], self.y[8 * index : 8 * index + 8]


def test_a_dataset_of_python_is_used_again(connect):
    x, y = regression(32)
    for one in pair(connect()):
        data = Slow(x, y)
        for _ in range(3):
            one.fit(data, steps_per_epoch=2, verbose=0)
        one.evaluate(data, steps=2, verbose=0)
        assert data.overlaps == 0


class Callable(Slow):
    def __call__(self):
        raise AssertionError("a PyDataset is no dataset_fn")


def test_a_dataset_that_can_be_called(connect):
    x, y = regression(32)
    trainer, reference = pair(connect())
    for one in (trainer, reference):
        one.fit(Callable(x, y), shuffle=False, verbose=0, validation_data=Callable(x, y))
        one.predict(Callable(x, y), verbose=0)
    assert relative_error(trainer.model, reference) < 1e-5
