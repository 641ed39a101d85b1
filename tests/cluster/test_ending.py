"""A program that has succeeded ends with 0, whatever its threads are doing."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.cluster.fleet import Fleet
from tfps.cluster.members import Task

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


ASKS = """
import json, os, sys, threading, time
import tensorflow as tf
import tfps
from tfps.cluster import ending
from tfps.cluster.departures import Departures

ending._LIMIT = 1.0
cluster = tfps.Cluster(json.loads(os.environ["SPEC"]))
asks = Departures(cluster)
asks.attend()
time.sleep(3)
print("asks", flush=True)
sys.stdin.readline()

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(8)

slow = Slow()
print("done", flush=True)
"""


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_a_worker_that_is_killed_and_returns_at_the_end_does_no_harm(tmp_path):
    worker = Task("worker", 0)
    with Fleet(tmp_path, 1, 1) as fleet:
        fleet.wait(worker)
        environ = {**os.environ, "SPEC": json.dumps(fleet.cluster.spec)}
        chief = subprocess.Popen(
            [sys.executable, "-c", ASKS],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert chief.stdout.readline() == "asks\n"
            fleet.kill(worker)
            time.sleep(2.0)  # It asks once a second: now it closes what it asked through.
            chief.stdin.write("\n")
            chief.stdin.flush()
            time.sleep(2.5)
            fleet.start(worker)
            out, err = chief.communicate(timeout=60)
        finally:
            chief.kill()
    assert (out, chief.returncode) == ("done\n", 0), err[-2000:]
