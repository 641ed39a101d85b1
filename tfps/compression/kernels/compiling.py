"""XLA for the pieces of codecs that cannot be compiled as a whole."""

import functools
from collections.abc import Callable

import tensorflow as tf


def compiled(function: Callable) -> Callable:
    """Compiles a function of tensors with XLA; inside of another function, anew.

    A `tf.function` of a module is traced once in a process and remembered. After
    a connection to another cluster, new servers would be asked to run a function
    that they were never sent. Inside a function, the caller traces once anyway.
    """

    def compile_():
        return tf.function(function, jit_compile=True, autograph=False)

    here = compile_()

    @functools.wraps(function)
    def call(*args):
        return (compile_() if tf.inside_function() else here)(*args)

    return call
