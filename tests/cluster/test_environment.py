"""What XLA does on a ps."""

import os

import pytest
import tensorflow as tf

from tests import warm
from tfps.cluster import environment

# What XLA makes of the largest element of each row.
PROGRAM = """
import tensorflow as tf
x = tf.random.normal([1024, 128])
largest = tf.function(lambda x: tf.reduce_max(tf.exp(x), 1), jit_compile=True)
print("ynn" in largest.experimental_get_compiler_ir(x)(stage="optimized_hlo"))
"""


def uses_the_library(folder, environ):
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "XLA_FLAGS": "", **environ}
    done = warm.run(["-c", PROGRAM], folder, environ, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1] == "True"


@pytest.mark.processes
def test_reductions_on_a_ps_are_xlas_own(tmp_path):
    environ = {}
    environment.configure_xla(environ)
    assert not uses_the_library(tmp_path, environ)
    assert uses_the_library(tmp_path, {})


def test_users_flags_count(monkeypatch):
    environ = {"XLA_FLAGS": "--xla_dump_to=there"}
    environment.configure_xla(environ)
    environment.configure_xla(environ)
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    assert environ["XLA_FLAGS"].split() == ["--xla_dump_to=there", flag]
    monkeypatch.setattr(tf, "__version__", "2.99.0")
    environ = {}
    environment.configure_xla(environ)
    assert not environ
