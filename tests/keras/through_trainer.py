"""A pytest plugin: whoever calls `fit`, `evaluate` or the like of a Keras model gets a Trainer's.

`pytest -p tests.keras.through_trainer --workers=1 .../keras/src/trainers/trainer_test.py` runs
Keras's own tests, unchanged, on an embedded cluster.
"""

import functools

import keras
import pytest
from tensorflow.python.eager import context

import tfps

_METHODS = (
    *("fit", "evaluate", "predict"),
    *("train_on_batch", "test_on_batch", "predict_on_batch"),
)


def pytest_addoption(parser):
    """Adds `--workers`; 0 runs plain Keras."""
    parser.addoption("--workers", type=int, default=1, help="workers of the cluster; 0 for none")


def pytest_configure(config):
    """Puts the Trainer in the models' place."""
    if workers := config.getoption("--workers"):
        config.stash[_INSTEAD] = _Instead(workers)


_INSTEAD = pytest.StashKey["_Instead"]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Marks in the report which tests came to a Trainer."""
    instead = item.config.stash.get(_INSTEAD, None)
    if instead is None:
        return (yield)
    before = instead.calls
    try:
        return (yield)
    finally:
        item.user_properties.append(("trainer_calls", instead.calls - before))
        instead.trainers.clear()


class _Instead:
    """The Trainers of all models of this process.

    Attributes:
      calls: how many calls of models they were given.
      trainers: `id` of a model -> its Trainer, for the models of the present test.
    """

    def __init__(self, workers: int):
        self.calls = 0
        self._strategy = None
        self._workers = workers
        self.trainers: dict = {}
        owner = next(c for c in keras.Model.__mro__ if "fit" in vars(c) and c is not keras.Model)
        for name in _METHODS:
            setattr(owner, name, self._through(name, vars(owner)[name]))

    def _through(self, name, plain):
        @functools.wraps(plain)
        def method(model, *args, **kwargs):
            self.calls += 1
            # Some tests give TensorFlow a new context, without servers.
            if self._strategy is None or context.get_server_def() is None:
                cluster = tfps.LocalCluster(self._workers, 1)
                self._strategy = tfps.ParameterServerStrategy(cluster)
            # A Trainer holds its model, so the key stays the model's own.
            if id(model) not in self.trainers:
                self.trainers[id(model)] = tfps.Trainer(model, self._strategy)
            return getattr(self.trainers[id(model)], name)(*args, **kwargs)

        return method
