"""A program that has succeeded ends with 0, whatever its threads are doing."""

import subprocess
import sys

import pytest

PROGRAM = """
import threading, time
import tensorflow as tf
from tfps.cluster import ending

def work():
    with tf.Graph().as_default():
        nothing = tf.no_op()
        while not ending.has_begun():
            # TensorFlow makes it in C++, without the interpreter's lock.
            with tf.compat.v1.Session() as session:
                session.run(nothing)

for i in range(4):
    threading.Thread(target=work, name=f"{PREFIX}{i}", daemon=True).start()

class Slow:  # Taking a large program apart takes long.
    def __del__(self, sleep=time.sleep):
        sleep(1)

slow = Slow()
time.sleep(1)
print("done", flush=True)
"""


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_threads_come_back_from_tensorflow_before_the_interpreter_ends():
    from tfps.cluster.ending import PREFIX

    program = PROGRAM.replace("{PREFIX}", PREFIX)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr[-2000:]
