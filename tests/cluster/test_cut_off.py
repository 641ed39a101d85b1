"""Workers that vanish with their network, or freeze, and return. With namespaces, so for root."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
import tensorflow as tf

import tfps
from benchmarks.wire import hosts
from tests.cluster.fleet import Fleet
from tfps.cluster.members import Task

pytestmark = [pytest.mark.processes, pytest.mark.soak, pytest.mark.timeout(240)]

CHIEF = """
    import sys, time
    import tensorflow as tf, tfps
    from tfps.cluster import members
    if sys.argv[1] == "localhost":  # Known to the servers under this name; see `made_before`.
        tf.constant(1)
    strategy = tfps.ParameterServerStrategy(tfps.Cluster.from_env())
    coordinator = tfps.ClusterCoordinator(strategy)
    with strategy.scope():
        count = tf.Variable(0)

    @tf.function
    def add():
        count.assign_add(1)

    def run(number):
        begun = time.monotonic()
        for _ in range(number):
            coordinator.schedule(add)
        coordinator.join()
        return time.monotonic() - begun

    run(20)
    print("ready", flush=True)
    sys.stdin.readline()
    print("cut", run(100), count.numpy(), flush=True)
    print("without", run(100), count.numpy(), flush=True)
    sys.stdin.readline()
    known = members.of(strategy.cluster)
    begun = time.monotonic()
    while known.lost() and time.monotonic() < begun + 60:
        time.sleep(0.1)
    run(20)
    print("back", sorted(known.lost()), time.monotonic() - begun, flush=True)
    strategy.cluster.close()
"""


@pytest.mark.parametrize("name", ["chief", "localhost"])
def test_a_worker_whose_network_is_cut_and_heals(tmp_path, name):
    if why := hosts.why_not():
        pytest.skip(f"no network namespaces: {why}")
    spec = {
        job: [f"{hosts.SUBNET}.{i}:2222" for i in numbers]
        for job, numbers in (("chief", (1,)), ("worker", (2, 3)), ("ps", (4,)))
    }
    processes = []

    def start(job, index, host, command):
        task = {"cluster": spec, "task": {"type": job, "index": index}}
        environ = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        with open(tmp_path / f"{job}{index}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    [*network.command(host), sys.executable, *command],
                    env={**environ, "TF_CONFIG": json.dumps(task)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )
        return processes[-1]

    def tell():
        chief.stdin.write("go\n")
        chief.stdin.flush()

    def line():
        return chief.stdout.readline() or (tmp_path / "chief0.log").read_text()

    with hosts.Network() as network:
        try:
            for index in (0, 1):
                start("worker", index, f"worker{index}", ["-m", "tfps.serve"])
            start("ps", 0, "ps0", ["-m", "tfps.serve"])
            chief = start("chief", 0, "chief", ["-c", textwrap.dedent(CHIEF), name])
            assert line() == "ready\n"
            time.sleep(5.0)  # The servers have seen their chief.
            network.unplug("worker0")
            tell()
            said, seconds, count = (first := line()).split()
            assert said == "cut", first
            assert float(seconds) < 20.0
            assert int(count) >= 120
            said, seconds, count = (second := line()).split()
            assert said == "without", second
            assert float(seconds) < 5.0
            # By its own clock the worker has not seen the chief for its lease.
            log = tmp_path / "worker0.log"
            deadline = time.monotonic() + 60.0
            while "starts anew" not in log.read_text():
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            network.plug("worker0")
            tell()
            assert line().startswith("back []")
            assert [p.wait(30) for p in processes] == [0, 0, 0, 0]
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def test_a_worker_that_was_frozen_for_long_starts_anew(tmp_path):
    worker, ps = Task("worker", 0), Task("ps", 0)
    with Fleet(tmp_path, 1, 1) as fleet:
        fleet.wait(worker, ps)
        strategy = tfps.ParameterServerStrategy(fleet.cluster)
        with strategy.scope():
            variable = tf.Variable(3.0)
        time.sleep(5.0)  # The servers have seen their chief.
        for task in (worker, ps):
            fleet.freeze(task)
        time.sleep(18.0)
        for task in (worker, ps):
            fleet.thaw(task)
        deadline = time.monotonic() + 20.0
        while "which was frozen for" not in fleet.log(worker):
            assert time.monotonic() < deadline, fleet.log(worker)
            time.sleep(0.2)
        assert variable.numpy() == 3.0  # A parameter server has more patience.
        assert "starts anew" not in fleet.log(ps)
