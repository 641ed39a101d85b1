"""Layers that assign a variable which is trained."""

import keras
import numpy as np
import pytest

from tests.conftest import mlp, regression
from tests.keras.test_programs import both

_LOST = "in its call; the servers keep what the optimizer makes of them"


class Masked(keras.layers.Layer):
    """A dense layer that sets half of its kernel to zero before it uses it, as in PixelCNN."""

    def build(self, shape):
        self.dense = keras.layers.Dense(4)
        self.dense.build(shape)
        self.mask = np.arange(shape[-1] * 4).reshape(shape[-1], 4) % 2

    def call(self, x):
        self.dense.kernel.assign(self.dense.kernel * self.mask)
        return self.dense(x)


def masked():
    return keras.Sequential([keras.Input([8]), Masked(), keras.layers.Dense(1)])


@pytest.mark.parametrize("eager", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_mask_acts_in_every_step(connect, eager):
    x, y = regression(64)
    trainer, reference = both(connect(), masked, run_eagerly=eager)
    args = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    with pytest.warns(UserWarning, match=_LOST):
        mine = trainer.fit(x, y, **args)
    theirs = reference.fit(x, y, **args)
    np.testing.assert_allclose(mine.history["loss"], theirs.history["loss"], rtol=1e-5)
    # The chief's model uses the kernel through the mask, too.
    np.testing.assert_allclose(trainer.model(x), reference(x), rtol=1e-4, atol=1e-6)


def test_spectral_normalization_is_warned_about(connect):
    def make():
        layer = keras.layers.SpectralNormalization(keras.layers.Dense(4))
        return keras.Sequential([keras.Input([8]), layer, keras.layers.Dense(1)])

    x, y = regression(64)
    trainer, _ = both(connect(), make)
    with pytest.warns(UserWarning, match=_LOST):
        trainer.fit(x, y, batch_size=16, verbose=0)


def test_others_are_not_warned_about(connect, recwarn):
    x, y = regression(64)
    both(connect(), mlp)[0].fit(x, y, batch_size=16, verbose=0)
    assert not [w for w in recwarn if _LOST in str(w.message)]
