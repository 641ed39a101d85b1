"""Optimizers whose class overrides `apply`, which several servers call each for itself."""

import warnings

import keras
import pytest

from tfps.model import optimizer_traits


class Normed(keras.optimizers.SGD):
    """Looks at all gradients together."""

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)


def test_several_servers_are_warned_of():
    with pytest.warns(UserWarning, match="Normed overrides apply, which each of the 2 ps"):
        optimizer_traits.require_supported(Normed(), 2)
    scaled = keras.optimizers.LossScaleOptimizer(Normed())
    with pytest.warns(UserWarning, match="Normed"):
        optimizer_traits.require_supported(scaled, 2)


def test_one_server_and_the_optimizers_of_keras_are_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer_traits.require_supported(Normed(), 1)
        optimizer_traits.require_supported(keras.optimizers.Adam(), 2)
        optimizer_traits.require_supported(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.Muon()), 2
        )
