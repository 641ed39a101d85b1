"""XLA for parts of codecs that cannot be compiled as a whole."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function of tensors with XLA, anew for each `tf.function` that calls it.

    TensorFlow remembers what it traced for a `tf.function` of a module. After a connection to
    another cluster, it would ask the new servers to run a function that was never sent to them.
    So within another `tf.function`, which is traced for the present cluster, a fresh function is
    made each time. The caller is traced once, so the function is traced as often as before.
    """

    def compile_():
        return tf.function(function, jit_compile=True, autograph=False)

    here = compile_()

    @functools.wraps(function)
    def call(*args):
        return (compile_() if tf.inside_function() else here)(*args)

    return call
