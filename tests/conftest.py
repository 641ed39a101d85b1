"""Clusters that tests share, small models, and the marks by which tests are chosen."""

import contextlib
import gc
import inspect
import os
import pathlib
import re
import subprocess
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow gives every server, and every connection, 64 threads that receive answers of others.
os.environ.setdefault("TF_GRPC_WORKER_CACHE_QUEUES", "2")
# Looking for oneDNN's kernels takes a tenth of what a new step costs. `make soak` has them.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# Its plugin would import it after the tests, when CPython 3.11's parser was seen to fail.
import hypothesis
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import tfps
from tests.soak_only import is_soak_only
from tfps import _tf, _tf_resources
from tfps.cluster import sockets

_TESTS = pathlib.Path(__file__).parent

# `make soak` looks for longer; the default is what `make test` can afford.
hypothesis.settings.register_profile("test", max_examples=80, stateful_step_count=40, deadline=None)
hypothesis.settings.register_profile(
    "soak", max_examples=1000, stateful_step_count=80, deadline=None
)
hypothesis.settings.load_profile("test")

# A model that is put on the servers collects garbage first. What the imports have made is none.
gc.collect()
gc.freeze()


# A process that has used a device before it connects goes on as `localhost`. TensorFlow's own
# strategy, which some tests compare with ours, always connects as `chief`, and TensorFlow cannot
# rename a process that is connected already. So this process is called `chief`, whatever the tests
# have done before. With `TFPS_TEST_JOB=localhost`, all tests that do without TensorFlow's strategy
# run under the other name.
_local_job = _tf.local_job
if os.environ.get("TFPS_TEST_JOB", "chief") == "chief":
    _tf.local_job = lambda: _local_job() if _tf_resources.connection() else None


def pytest_collection_modifyitems(items):
    """Marks the tests that need an embedded cluster, and puts those of one size together.

    Each time that a process connects to another cluster, TensorFlow leaves threads and 40 MB
    behind. In the order of the files, a process came to 10,000 threads and 5 GB.
    """
    for item in items:
        if "connect" in item.fixturenames:
            item.add_marker("servers")
        if is_soak_only(item.path.relative_to(_TESTS).as_posix(), item.name):
            item.add_marker("soak")
    items.sort(key=_size)


def _size(item) -> tuple[int, int]:
    """(workers, ps) of the first cluster that the code of a test names; (0, 0) without servers.

    Parts of the cluster that is shared are one size.
    """
    if "connect" not in item.fixturenames:
        return 0, 0
    call = re.search(r"\bconnect\(([^()]*)", inspect.getsource(item.function))
    arguments = call[1] if call else ""
    workers = re.match(r"(?:workers=)?(\d+)", arguments)
    ps = re.search(r"\bps=(\d+)", arguments)
    size = int(workers[1]) if workers else 1, int(ps[1]) if ps else 2
    return size if max(size) > 2 else _SHARED[:2]


@pytest.fixture(autouse=True)
def _processes_are_marked(request, monkeypatch):
    """Refuses to start a process in a test that does not have the mark `processes`."""
    if request.node.get_closest_marker("processes"):
        # A process that connects to other servers first can embed none any more.
        if _tf_resources.connection() is None:
            _connected(_SHARED)
        return

    def refuse(self, command, *args, **kwargs):
        raise AssertionError(f"{request.node.name} starts {command}; mark it with `processes`")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


# Programs run with TensorFlow's graph optimizer, which takes a sixth of what a new step costs. With
# `TFPS_TEST_OPTIMIZED=1` all tests have it (`make soak`). In `make test` these have: programs as
# users write them, each kind of step, table, codec and policy, and what runs in other processes.
_OPTIMIZED = ("keras/", "coordinator/", "test_smoke", "worker_step_laws", "store/test_tables")
_OPTIMIZED += ("training/test_consistency", "training/test_codecs", "training/test_device_split")
_ALL_OPTIMIZED = os.environ.get("TFPS_TEST_OPTIMIZED") == "1"


@pytest.fixture(autouse=True)
def _graphs_are_optimized(request):
    """Switches TensorFlow's graph optimizer on for some tests; see above."""
    on = any(name in request.node.nodeid for name in _OPTIMIZED) or _ALL_OPTIMIZED
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not on})


_clusters: dict = {}


@contextlib.contextmanager
def _renamed():
    """Carries Keras variables over the connection by which this process becomes `chief`.

    Those are in the optimizers of policies that tests are parametrized with.
    """
    first = _tf_resources.connection() is None and _tf.local_job() is None
    (variables,) = _tf_resources.live(keras.Variable) if first else [[]]
    kept = [(v, v.numpy(), v.value._unique_id) for v in variables if v._value is not None]
    yield
    for variable, value, identity in kept:
        variable._initialize(value)
        variable.value._unique_id = identity


def _is_connected(cluster: tfps.Cluster) -> bool:
    """Whether this process is connected to just these tasks."""
    definition = context.get_server_def()
    if definition is None:
        return False
    tasks = {job.name: [job.tasks[i] for i in sorted(job.tasks)] for job in definition.cluster.job}
    tasks["chief"] = tasks.pop(definition.job_name)
    return tasks == cluster.spec


class _Connected(tfps.ParameterServerStrategy):
    """A strategy on a cluster that this process is connected to already.

    To connect again, which TensorFlow does for every strategy, would take 0.1 s in every test.
    """

    def _connect_to_cluster(self, coordinator_name: str) -> None:
        spec = self._cluster_resolver.cluster_spec().as_dict()
        self._num_workers, self._num_ps = len(spec["worker"]), len(spec["ps"])


class _ConnectedStock(tf.distribute.ParameterServerStrategy):
    """TensorFlow's own strategy, likewise."""

    _connect_to_cluster = _Connected._connect_to_cluster


# What most tests need, and others take a part of: (workers, ps, devices of a worker's CPU).
_SHARED = 2, 2, 1


def _connected(size: tuple[int, int, int]) -> tfps.Cluster:
    """An embedded cluster to which this process is connected."""
    if size not in _clusters:
        _clusters[size] = tfps.LocalCluster(*size[:2], cpu_devices=size[2])
    cluster = _clusters[size]
    if not _is_connected(cluster):
        if cluster.connected:
            cluster.spec["chief"][:] = [f"127.0.0.1:{port}" for port in sockets.free_ports(1)]
            cluster.connected = False
        with _renamed():
            tfps.ParameterServerStrategy(cluster)
    return cluster


def _part(cluster: tfps.Cluster, workers: int, ps: int) -> tfps.Cluster:
    """The first tasks of a cluster that this process is connected to."""
    spec = cluster.spec
    part = tfps.Cluster({**spec, "worker": spec["worker"][:workers], "ps": spec["ps"][:ps]})
    part.connected = True
    return part


@pytest.fixture(scope="session")
def connect():
    """`connect(workers, ps, partitioner, cpu_devices)`: a strategy on an embedded cluster.

    Servers never end, and have a hundred threads each, so tests share clusters. A process is
    connected to one at a time, each time from a port that no other server of its own has; since
    that leaves threads behind as well, small clusters are parts of one.
    """

    def get(workers=1, ps=2, partitioner=None, cpu_devices=1):
        size = workers, ps, cpu_devices
        if all(one <= most for one, most in zip(size, _SHARED, strict=True)):
            size = _SHARED
        return _Connected(_part(_connected(size), workers, ps), partitioner)

    return get


def tensorflows(strategy, partitioner=None):
    """TensorFlow's own strategy on the servers of one of ours."""
    if _tf.local_job() != "chief":
        pytest.skip("TensorFlow's own strategy cannot rename this process")
    return _ConnectedStock(strategy.cluster.resolver(), partitioner)


@pytest.fixture(autouse=True)
def _clean_keras():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def mlp(batch_norm=False, dropout=0.0, inputs=8, units=16, outputs=1):
    """A small dense network with reproducible weights."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input([inputs]), keras.layers.Dense(units, activation="tanh")]
    if batch_norm:
        layers.append(keras.layers.BatchNormalization(momentum=0.9))
    if dropout:
        layers.append(keras.layers.Dropout(dropout))
    return keras.Sequential([*layers, keras.layers.Dense(outputs)])


def regression(examples=320, inputs=8):
    """x float32 [examples, inputs] and y float32 [examples, 1], a smooth function of it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, inputs)).astype(np.float32)
    return x, np.sin(x[:, :1] + x[:, 1:2])


def relative_error(model, reference) -> float:
    """The largest difference of two models' weights, relative to each variable's largest value."""
    return max(
        float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30))
        for a, b in zip(model.get_weights(), reference.get_weights(), strict=True)
    )


class Counting(keras.Model):
    """Its gradient is 1 everywhere, and it counts on the servers the batches that it sees."""

    def build(self, shape):
        self.w = self.add_weight(shape=(4,), initializer="zeros")
        self.batches = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, x, training=False):
        if training:
            self.batches.assign_add(1)
        return keras.ops.sum(self.w) + 0.0 * x

    @classmethod
    def compiled(cls, optimizer, **compile_args):
        model = cls()
        model.compile(optimizer, loss=lambda y, p: p, jit_compile=False, **compile_args)
        return model


class Watched:
    """A policy's schedule that notes what happens.

    Attributes:
      log: (event, arguments.., time in s) of each: "started" a worker; "applied", "held"
        or "dropped" what it computed in so many steps; "due" the shares of a round.
    """

    def __init__(self, schedule, log, in_rounds):
        self._schedule, self.log = schedule, log
        self._otherwise = "dropped" if in_rounds else "applied"

    def _note(self, *event):
        self.log.append((*event, time.perf_counter()))

    def started(self, worker):
        self._note("started", worker)
        self._schedule.started(worker)

    def finished(self, worker, steps, weight):
        held = self._schedule.finished(worker, steps, weight)
        self._note("held" if held else self._otherwise, worker, steps)
        return held

    def due(self):
        if due := self._schedule.due():
            self._note("due", due)
        return due

    def __getattr__(self, name):
        return getattr(self._schedule, name)


def watched(policy):
    """(the policy, the log of all of its schedules)."""
    log = []
    make = policy.schedule
    object.__setattr__(policy, "schedule", lambda: Watched(make(), log, policy.in_rounds))
    return policy, log
