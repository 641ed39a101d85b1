"""What goes to standard error: the user's error, short, and nothing of TensorFlow's C++ code."""

import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfps

PROGRAM = """
import sys
import tensorflow as tf

print("imported", file=sys.stderr, flush=True)
import tfps

strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=1, ps=1))
coordinator = tfps.ClusterCoordinator(strategy)

@tf.function
def fails():
    return tf.debugging.check_numerics(tf.constant(float("nan")), "not a number")

coordinator.schedule(fails)
try:
    coordinator.join()
except tf.errors.InvalidArgumentError as e:
    print("caught", type(e).__name__)
"""
NOTE = re.compile(r"^[IWE]\d{4} \d\d:", re.MULTILINE)


@pytest.mark.processes
@pytest.mark.parametrize("asked", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_servers_in_this_process_write_nothing_unless_asked(asked):
    environ = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    if asked:
        environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=110
    )
    assert "caught" in done.stdout, done.stderr
    _, after = done.stderr.split("imported\n")
    assert bool(NOTE.search(after)) == asked


def test_an_error_says_where_the_users_code_is_and_little_else(connect):
    y = np.full([8], 99)
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(4, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    trainer = tfps.Trainer(model, connect(workers=1))
    with pytest.raises(tfps.WorkerError) as caught:
        trainer.fit(np.ones([8, 2], np.float32), y, verbose=0)
    said = str(caught.value)
    assert "label value of 99" in said and "\n" not in said
    cause = caught.value.__cause__
    assert cause is not None and cause.__cause__ is None
    assert cause.message.count("Detected at node compile_loss") == 1
    frames = re.findall(r'  File "(.*?)"', cause.message)
    assert __file__ in frames
    assert not [f for f in frames if "/keras/" in f or "/tensorflow/" in f or "/tfps/" in f]
