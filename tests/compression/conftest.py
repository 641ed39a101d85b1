"""Codecs op by op, where what is tested is their arithmetic and not its compilation."""

import pytest
import tensorflow as tf


@pytest.fixture(scope="module")
def eagerly():
    """Runs `tf.function`s op by op: XLA would compile the parts of a codec anew for each shape.

    `test_laws.test_compiles_once_for_all_steps` runs every codec with XLA.
    """
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
