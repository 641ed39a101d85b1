"""A host that is gone without a word. With namespaces, so for root."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from benchmarks.wire import hosts
from tfps.cluster import environment

CHIEF = """
    import sys, time
    import keras, numpy, tfps
    # A host that has made something before the strategy is known to the servers as localhost.
    model = None
    if sys.argv[1] == "localhost":
        model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    strategy = tfps.ParameterServerStrategy(tfps.Cluster.from_env())
    model = model or keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    assert sys.argv[1] in model.weights[0].value.device
    model.compile("sgd", "mse")
    x = numpy.ones([16, 4], "float32")
    trainer = tfps.Trainer(model, strategy)
    trainer.fit(x, x[:, :1], verbose=0)
    print("ready", flush=True)
    sys.stdin.readline()
    model.set_weights([w + 1 for w in model.get_weights()])  # To be sent by the chief itself.
    try:
        trainer.evaluate(x, x[:, :1], verbose=0)
    except tfps.TaskLost as e:
        print(e, flush=True)
"""


def test_users_options_count():
    environ = {"TF_GRPC_DEFAULT_OPTIONS": "grpc.keepalive_time_ms=1,other=2"}
    environment.configure_channels(environ)
    environment.configure_channels(environ)
    options = environ[environment.CHANNEL_VARIABLE].split(",")
    assert options[:2] == ["grpc.keepalive_time_ms=1", "other=2"]
    assert "grpc.keepalive_timeout_ms=60000" in options
    assert len(options) == len(set(options)) == 4


@pytest.mark.processes
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [pytest.param("chief", marks=pytest.mark.soak), "localhost"])
def test_a_host_that_vanishes_is_named(tmp_path, name):
    if why := hosts.why_not():
        pytest.skip(f"no network namespaces: {why}")
    spec = {
        job: [f"{hosts.SUBNET}.{i}:2222"] for job, i in (("chief", 1), ("worker", 2), ("ps", 4))
    }
    processes = []

    def start(job, host, command):
        environ = {
            **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
            "TF_CONFIG": json.dumps({"cluster": spec, "task": {"type": job, "index": 0}}),
            # As little as gRPC allows, and a test can wait for.
            "TF_GRPC_DEFAULT_OPTIONS": "grpc.keepalive_time_ms=10000,"
            "grpc.keepalive_timeout_ms=3000",
        }
        with open(tmp_path / f"{job}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    [*network.command(host), sys.executable, *command],
                    env=environ,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )
        return processes[-1]

    with hosts.Network() as network:
        try:
            start("worker", "worker0", ["-m", "tfps.serve"])
            start("ps", "ps0", ["-m", "tfps.serve"])
            chief = start("chief", "chief", ["-c", textwrap.dedent(CHIEF), name])
            assert chief.stdout.readline() == "ready\n", (tmp_path / "chief.log").read_text()
            network.unplug("ps0")
            begun = time.monotonic()
            chief.stdin.write("go\n")
            chief.stdin.flush()
            line = chief.stdout.readline()
            assert f"ps 0 ({hosts.SUBNET}.4:2222) no longer answers" in line
            assert time.monotonic() - begun < 40
        finally:
            for process in processes:
                process.kill()
                process.communicate()
