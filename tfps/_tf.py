"""The private names of TensorFlow that tfps uses, as of TensorFlow 2.21.

Nothing else in the package imports from `tensorflow.python`.
"""

import sys

import tensorflow as tf

_VARIABLE_CREATION = ("tensorflow.", "tfps.")


def created_by_keras3() -> bool:
    """Whether the variable now being created under a strategy is a Keras 3 variable.

    A variable creator sees only the arguments, which are the same for
    `tf.Variable` and for Keras 3; who asked is on the stack: the first frame
    that is not TensorFlow's.
    """
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(_VARIABLE_CREATION):
            return module == "keras.src.backend.tensorflow.core"
        frame = frame.f_back
    return False


def num_ps_in_scope() -> int:
    """Parameter servers of the parameter-server strategy whose scope is entered; 0 outside."""
    return getattr(tf.distribute.get_strategy().extended, "_num_ps", 0)
