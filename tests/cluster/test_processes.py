"""Real processes: the GPT binary by TF_CONFIG, and how its servers end."""

import json
import os
import pathlib
import signal
import socket
import time

import pytest
import tensorflow as tf

import tfps
from tests import warm
from tfps.cluster import sockets

pytestmark = pytest.mark.processes

ROOT = pathlib.Path(__file__).parent.parent.parent
SMALL = [
    "--layers=1",
    "--width=16",
    "--heads=2",
    "--context=16",
    "--batch_size=4",
    "--epochs=1",
    "--steps_per_epoch=8",
    "--steps_per_execution=2",
    "--validation_steps=2",
    "--generate_tokens=4",
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    return path


class Tasks:
    """Starts tasks of one cluster, and ends what is left of them."""

    def __init__(self, folder: pathlib.Path, spec: dict):
        self.folder, self.spec = folder, spec
        self.processes: dict = {}

    def start(self, job, index=0, *args, chief_timeout=2):
        config = {"cluster": self.spec, "task": {"type": job, "index": index}}
        environ = {"TF_CONFIG": json.dumps(config), "TFPS_CHIEF_TIMEOUT": str(chief_timeout)}
        name = f"{job}{index}"
        self.processes[name] = warm.start(
            ["-m", "models.gpt", *args],
            ROOT,
            {**os.environ, **environ},
            self.folder / f"{name}.log",
        )
        return self.processes[name]

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def exit_codes(self, timeout):
        deadline = time.monotonic() + timeout
        return {
            name: p.wait(max(0.1, deadline - time.monotonic()))
            for name, p in self.processes.items()
        }

    def wait_for_line(self, name, text, timeout):
        deadline = time.monotonic() + timeout
        while text not in self.log(name):
            assert time.monotonic() < deadline, self.log(name)
            assert self.processes[name].poll() is None, self.log(name)
            time.sleep(0.2)

    def kill_all(self):
        for p in self.processes.values():
            if p.poll() is None:
                p.kill()
            p.wait()


@pytest.fixture
def cluster_of(tmp_path):
    """`cluster_of(workers)`: the tasks of a cluster with one ps, none of them started."""
    made = []

    def get(workers):
        ports = iter(sockets.free_ports(2 + workers))
        spec = {
            job: [f"127.0.0.1:{next(ports)}" for _ in range(n)]
            for job, n in (("chief", 1), ("worker", workers), ("ps", 1))
        }
        made.append(Tasks(tmp_path, spec))
        return made[-1]

    yield get
    for tasks in made:
        tasks.kill_all()


def chief_args(text, tmp_path, *more):
    return [
        f"--data={text}",
        f"--save={tmp_path}/m.keras",
        f"--log_dir={tmp_path}/log",
        *SMALL,
        *more,
    ]


@pytest.mark.timeout(180)
def test_every_task_ends_with_the_job(cluster_of, text, tmp_path):
    tasks = cluster_of(workers=2)
    # In an order that a person might choose: some servers, the chief, the rest.
    tasks.start("worker", 1)
    tasks.start("chief", 0, *chief_args(text, tmp_path))
    time.sleep(5)
    tasks.start("ps", 0)
    tasks.start("worker", 0)
    codes = tasks.exit_codes(120)
    assert set(codes.values()) == {0}, (codes, tasks.log("chief0"))
    assert "bits per byte" in tasks.log("chief0")
    assert "the job is done" in tasks.log("worker1")
    assert (tmp_path / "m.keras").exists()
    for name in codes:
        assert "Traceback" not in tasks.log(name)


@pytest.mark.timeout(180)
def test_servers_notice_that_the_chief_died(cluster_of, text, tmp_path):
    tasks = cluster_of(workers=1)
    for job in ("worker", "ps"):
        tasks.start(job, 0)
    chief = tasks.start("chief", 0, *chief_args(text, tmp_path, "--epochs=100000"))
    tasks.wait_for_line("chief0", "validation:", 90)
    chief.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes = tasks.exit_codes(90)
    assert time.monotonic() - killed < 90
    for name in ("worker0", "ps0"):
        assert codes[name] == 75
        chief = f"the chief at {tasks.spec['chief'][0]}"
        assert f"{chief} died without a word; this server starts anew" in tasks.log(name)
        assert f"{chief} did not come within 2 s" in tasks.log(name)


@pytest.mark.timeout(240)
def test_a_chief_that_is_told_to_end_leaves_its_servers_to_the_next(cluster_of, text, tmp_path):
    tasks = cluster_of(workers=1)
    servers = [tasks.start(job, 0, chief_timeout=120) for job in ("worker", "ps")]
    chief = tasks.start("chief", 0, *chief_args(text, tmp_path, "--epochs=100000"))
    tasks.wait_for_line("chief0", "validation:", 90)
    chief.send_signal(signal.SIGTERM)
    assert chief.wait(60) == 143, tasks.log("chief0")
    tasks.start("chief", 0, *chief_args(text, tmp_path))
    codes = tasks.exit_codes(120)
    assert set(codes.values()) == {0}, (codes, tasks.log("chief0"), tasks.log("ps0"))
    assert "bits per byte" in tasks.log("chief0")
    assert [tasks.processes["worker0"], tasks.processes["ps0"]] == servers
    for name in ("worker0", "ps0"):
        assert tasks.log(name).count("was told to end; this server starts anew") == 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("victim", "survivor"), [("worker0", "ps0"), ("ps0", "worker0")])
def test_a_lost_server_ends_the_job_with_its_name(cluster_of, text, tmp_path, victim, survivor):
    tasks = cluster_of(workers=1)
    for job in ("worker", "ps"):
        tasks.start(job, 0)
    tasks.start("chief", 0, *chief_args(text, tmp_path, "--epochs=100000", "--task_timeout=3"))
    tasks.wait_for_line("chief0", "validation:", 90)
    tasks.processes[victim].kill()
    codes = tasks.exit_codes(60)
    assert codes["chief0"] == 75
    last = tasks.log("chief0").strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert ("none returned" if victim == "worker0" else "ps 0") in last
    assert codes[survivor] == 75
    assert "the job failed" in tasks.log(survivor)


@pytest.mark.timeout(120)
def test_a_missing_server_is_named(cluster_of, text, tmp_path):
    tasks = cluster_of(workers=1)
    with socket.create_server(sockets.split(tasks.spec["worker"][0])):  # It answers.
        tasks.start("chief", 0, *chief_args(text, tmp_path, "--startup_timeout=1"))
        codes = tasks.exit_codes(60)
    assert codes["chief0"] == 75
    assert f"from ps 0 at {tasks.spec['ps'][0]};" in tasks.log("chief0")
    assert "Traceback" not in tasks.log("chief0")


@pytest.mark.timeout(120)
def test_local_cluster_of_processes(tmp_path):
    program = """
import numpy as np, keras, tfps
with tfps.LocalCluster(workers=1, ps=1, processes=True) as cluster:
    pids = [p.pid for p in cluster._processes]
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, tfps.ParameterServerStrategy(cluster))
    trainer.fit(np.ones([64, 4]), np.ones([64, 1]), verbose=0)
print("codes", [p.returncode for p in cluster.ended], int(model.optimizer.iterations))
"""
    done = warm.run(["-c", program], ROOT, os.environ, tmp_path)
    assert "codes [0, 0] 2" in done.stdout, done.stderr
    assert "[worker 0] worker 0: the job is done" in done.stderr


@pytest.mark.soak
@pytest.mark.timeout(180)
def test_after_other_servers_an_embedded_cluster_becomes_processes(tmp_path):
    """Two embedded workers would wait for each other for ever in a pool of so few threads."""
    program = """
import numpy as np, keras, tensorflow as tf, tfps, warnings
tf.config.threading.set_inter_op_parallelism_threads(2)
with tfps.LocalCluster(workers=1, ps=1, processes=True) as cluster:
    tfps.ParameterServerStrategy(cluster)
with warnings.catch_warnings(record=True) as caught, tfps.LocalCluster(workers=2, ps=1) as cluster:
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, tfps.ParameterServerStrategy(cluster))
    trainer.fit(np.ones([64, 4]), np.ones([64, 1]), verbose=0)
print(int(model.optimizer.iterations), *[w.message for w in caught])
"""
    done = warm.run(["-c", program], ROOT, os.environ, tmp_path)
    assert "2 each of the 3 servers becomes a process of its own" in done.stdout, done.stderr


def test_a_lost_ps_ends_a_join_and_is_started_again():
    with tfps.LocalCluster(workers=1, ps=1, processes=True) as cluster:
        coordinator = tfps.ClusterCoordinator(tfps.ParameterServerStrategy(cluster))
        with coordinator.strategy.scope():
            count = tf.Variable(0)

        @tf.function
        def endless():
            while tf.constant(True):
                count.assign_add(1)

        coordinator.schedule(endless)
        later = coordinator.schedule(endless)
        while count.numpy() == 0:
            assert not coordinator.done()
        killed = cluster._processes[1]  # LocalCluster starts its workers before its ps.
        killed.kill()
        begun = time.monotonic()
        with pytest.raises(tfps.TaskLost, match=r"ps 0 .* is gone") as caught:
            coordinator.join()
        assert time.monotonic() - begun < 15
        assert isinstance(caught.value, tf.errors.UnavailableError)
        with pytest.raises(tf.errors.CancelledError):
            later.get()
        deadline = time.monotonic() + 60
        while coordinator._queue._members.lost():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert cluster._processes[1] is not killed
        with coordinator.strategy.scope():
            assert tf.Variable(7).numpy() == 7


def test_a_worker_without_restarts_stays_away(capfd):
    with tfps.LocalCluster(workers=1, ps=1, processes=True, restarts=0) as cluster:
        cluster.wait(60)
        cluster._processes[0].kill()
        deadline = time.monotonic() + 20
        while "has used its 0 restarts" not in (said := capfd.readouterr().err):
            assert time.monotonic() < deadline, said
            time.sleep(0.1)
    assert [p.returncode for p in cluster.ended] == [-9, 0]


def test_taken_port(cluster_of):
    tasks = cluster_of(workers=1)
    host, port = sockets.split(tasks.spec["ps"][0])
    with socket.socket() as sock:
        sock.bind((host, port))
        sock.listen()
        with pytest.raises(tfps.PortInUse, match="ps 0 cannot listen on"):
            tfps.serve(tfps.Cluster(tasks.spec, "ps", 0))
