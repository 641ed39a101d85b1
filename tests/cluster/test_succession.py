"""A chief that finds the servers of another chief."""

import json
import os
import time

import pytest

from tests import warm
from tests.cluster.fleet import ROOT, Fleet
from tfps import _tf_members
from tfps.cluster import greeting, succession
from tfps.cluster.members import Task

pytestmark = pytest.mark.processes

CHIEF = """
import os, sys, time
import tensorflow as tf, tfps
strategy = tfps.ParameterServerStrategy(tfps.Cluster.from_env())
with strategy.scope():
    variable = tf.Variable(1.0)
print("connected", float(variable.numpy()), flush=True)
time.sleep(float(sys.argv[1]))
strategy.cluster.close()
"""


@pytest.mark.timeout(200)
def test_each_chief_finds_servers_without_memory(tmp_path):
    with Fleet(tmp_path, 1, 1) as fleet:
        tasks = [Task("worker", 0), Task("ps", 0)]
        fleet.wait(*tasks)
        addresses = [fleet.cluster.spec[task.job][0] for task in tasks]

        def lives():
            return [_tf_members.incarnation(greeting.status(a, 20.0)) for a in addresses]

        def chief(name, seconds):
            config = {"cluster": fleet.cluster.spec, "task": {"type": "chief", "index": 0}}
            out = tmp_path / f"{name}.txt"
            program = warm.start(
                ["-c", CHIEF, str(seconds)],
                ROOT,
                {**os.environ, "TF_CONFIG": json.dumps(config)},
                out,
            )
            return program, out

        def until_connected(program, out):
            deadline = time.monotonic() + 90.0
            while "connected 1.0" not in out.read_text():
                assert time.monotonic() < deadline, out.read_text()
                assert program.poll() is None, out.read_text()
                time.sleep(0.1)

        before = lives()
        first, out = chief("first", 1000)
        try:
            until_connected(first, out)
            assert lives() == before  # The first chief finds fresh servers.
        finally:
            first.kill()
            first.wait(10)
        # It comes back sooner than the servers may have noticed that the first one died.
        second, out = chief("second", 0)
        try:
            until_connected(second, out)
            assert not set(before) & set(lives())
            assert second.wait(60) == 0
        finally:
            second.kill()
        for task in tasks:
            assert fleet.processes[task].wait(30) == 0, fleet.log(task)
            assert fleet.log(task).count("starts anew") == 1
            assert "the job is done" in fleet.log(task)


@pytest.mark.timeout(200)
def test_a_server_that_was_slow_to_answer_starts_anew_as_well(tmp_path, monkeypatch):
    with Fleet(tmp_path, 1, 1) as fleet:
        fleet.wait(worker := Task("worker", 0))
        address = fleet.cluster.spec["worker"][0]
        ask = greeting.status
        before = _tf_members.incarnation(ask(address, 20.0))
        monkeypatch.setattr(succession, "_name", lambda process: "first")
        succession.claim([("worker", 0, address)], 60.0)
        assert _tf_members.incarnation(ask(address, 20.0)) == before

        asked = []
        monkeypatch.setattr(
            greeting, "status", lambda *args: ask(*args) if asked else asked.append(args)
        )
        monkeypatch.setattr(succession, "_name", lambda process: "second")
        succession.claim([("worker", 0, address)], 60.0)
        assert _tf_members.incarnation(ask(address, 20.0)) not in (None, before)
        assert fleet.log(worker).count("starts anew") == 1
