"""Manifests at work: their own commands and environments, in network namespaces."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from benchmarks.wire import hosts
from launch import exit_codes, manifests, pods, topology
from tests.launch import kubelet, peers

pytestmark = pytest.mark.processes

# Any Python will do for programs that need the standard library only.
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


@pytest.fixture(scope="module")
def network():
    if why := kubelet.why_not():
        pytest.skip(f"no pods: {why}")
    with hosts.Network() as network:
        yield network


def anybody_may(python: str, module: str = "sys") -> bool:
    """Whether a user who is not root can run a Python and find a module there.

    `setpriv` can still start a Python below a folder that is root's alone, such as /root, and that
    Python then finds another one's packages.
    """
    looks = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    command = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", python, "-c", looks]
    return subprocess.run(command, capture_output=True, cwd="/").returncode == 0


@pytest.fixture
def cluster(network, tmp_path):
    os.chmod(tmp_path.parent, 0o755)
    os.chmod(tmp_path.parent.parent, 0o755)
    made = kubelet.Kubernetes(tmp_path, network, PYTHON, root=not anybody_may(PYTHON))
    shutil.copy(peers.__file__, made.volume / "peers.py")
    yield made
    made.close()


def job(*deeds, command=("python", "peers.py", "."), **settings):
    settings = {"restarts": {"worker": 3, "ps": 3, "chief": 3}, "grace": 5} | settings
    return pods.Job(
        "gpt",
        topology.roles(2, 2),
        "image",
        (*command, *deeds),
        folder="/mnt",
        **settings,
    )


def starts(cluster, task):
    path = cluster.volume / task
    return len(path.read_text().split()) if path.exists() else 0


def test_pods_find_one_another_by_name_and_jobs_end(cluster):
    cluster.apply(manifests.of_job(job()))
    cluster.until(lambda: all(j.complete for j in cluster.jobs.values()))
    reached = [x for x in cluster.log("gpt-chief-0").splitlines() if x.startswith("reached")]
    assert reached == [
        *("reached gpt-ps-0.gpt:2222", "reached gpt-ps-1.gpt:2222"),
        *("reached gpt-worker-0.gpt:2222", "reached gpt-worker-1.gpt:2222"),
    ]
    assert {len(j.pods) for j in cluster.jobs.values()} == {1, 2}  # None was started again.


def test_what_a_program_is_given(cluster):
    (cluster.volume / "look.py").write_text(
        "import os, sys\n"
        "assert sys.argv[1:] == ['$(HOME)', '$$', \"a 'b'\"], sys.argv\n"
        "assert os.getcwd() == '/mnt' and os.environ['HOME'] == '/tmp'\n"
        "assert os.environ['NOTE'] == '$(TASK_INDEX) $x', os.environ['NOTE']\n"
        "open('/tmp/x', 'w').close(); open('made', 'a').close()\n"
        "try: open('/etc/x', 'w')\n"
        "except OSError as e: print('refused', e.errno, os.getuid())\n"
    )
    words = ("$(HOME)", "$$", "a 'b'")
    asked = job(*words, command=("python", "look.py"), environ={"NOTE": "$(TASK_INDEX) $x"})
    cluster.apply(manifests.of_job(asked))
    cluster.until(lambda: all(j.complete for j in cluster.jobs.values()))
    refused = cluster.log("gpt-worker-1").split()
    assert refused[:2] == ["refused", "30"]  # EROFS
    assert refused[2] in ("1000", "0")


@pytest.mark.parametrize("code", [1, 2, 3, 42, 127])
def test_the_users_own_error_fails_its_job_at_once(cluster, code):
    cluster.apply(manifests.of_job(job("worker", "1", str(code))))
    cluster.until(lambda: cluster.jobs["worker"].reason is not None)
    assert cluster.jobs["worker"].reason == "PodFailurePolicy"
    assert starts(cluster, "worker-1") == 1


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_a_task_that_dies_is_started_again_under_its_name(cluster, signum):
    cluster.apply(manifests.of_job(job("ps", "1", f"once-{int(signum)}")))
    cluster.until(lambda: all(j.complete for j in cluster.jobs.values()))
    assert [p.host for p in cluster.jobs["ps"].pods] == ["gpt-ps-0", "gpt-ps-1", "gpt-ps-1"]
    assert len(cluster.jobs["worker"].pods) == 2


def test_a_task_that_dies_again_and_again_ends_its_job(cluster):
    cluster.apply(manifests.of_job(job("ps", "0", "75", restarts={"ps": 2})))
    cluster.until(lambda: cluster.jobs["ps"].reason is not None)
    assert cluster.jobs["ps"].reason == "MaxFailedIndexesExceeded"
    assert starts(cluster, "ps-0") == 3


def test_eviction_is_a_notice_and_does_not_count(cluster):
    cluster.apply(manifests.of_job(job("worker", "0", "tell", restarts={"worker": 1})))
    for times in (1, 2, 3):  # More often than it may fail.
        cluster.until(lambda: starts(cluster, "worker-0.ready") == times)  # noqa: B023
        pod = cluster.jobs["worker"].running[-1 if times > 1 else 0]
        assert pod.host == "gpt-worker-0"
        cluster.evict(pod)
        assert kubelet.exit_code(pod) == exit_codes.TERMINATED
        assert starts(cluster, "worker-0.term") == times
    cluster.until(lambda: starts(cluster, "worker-0") == 4)
    assert cluster.jobs["worker"].reason is None


def test_who_does_not_listen_is_killed_after_the_grace(cluster):
    cluster.apply(manifests.of_job(job("worker", "0", "deaf", grace=1)))
    cluster.until(lambda: starts(cluster, "worker-0.ready"))
    pod = cluster.jobs["worker"].running[0]
    assert cluster.evict(pod) >= 1
    assert kubelet.exit_code(pod) == 128 + signal.SIGKILL
    assert starts(cluster, "worker-0.term") == 1


@pytest.mark.parametrize("again", [0, 1])
def test_a_chief_that_lost_a_peer_ends_the_job_unless_that_may_begin_again(cluster, again):
    asked = job("chief", "0", "75", restarts={}, job_restarts=again)
    cluster.apply(manifests.of_job(asked))
    cluster.until(lambda: cluster.jobs["chief"].reason is not None)
    assert cluster.jobs["chief"].reason == "MaxFailedIndexesExceeded"
    assert starts(cluster, "chief-0") == 1 + again


TFPS = """
import keras, numpy as np, tfps
from models import task

def train(connect):
    strategy = connect().strategy
    with strategy.scope():
        model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        model.compile("sgd", loss="mse")
    x = np.ones([64, 4], "float32")
    epochs = int(FLAGS.epochs)
    history = tfps.Trainer(model, strategy).fit(x, x[:, :1], batch_size=8, epochs=epochs, verbose=0)
    print("trained", len(history.history["loss"]), flush=True)

if __name__ == "__main__":
    import sys
    from absl import app, flags
    FLAGS = flags.FLAGS
    flags.DEFINE_integer("epochs", 1, "")
    app.run(lambda _: sys.exit(task.run(train)))
"""


@pytest.fixture
def tfps_cluster(network, tmp_path):
    # Pods have a /tmp of their own, and the code below /srv.
    for folder in map(pathlib.Path, ("/tmp", "/srv")):
        if folder in pathlib.Path(sys.executable).parents:
            pytest.skip(f"{sys.executable} is below {folder}, of which each pod has its own")
    for folder in (tmp_path.parent, tmp_path.parent.parent):
        os.chmod(folder, 0o755)
    made = kubelet.Kubernetes(
        tmp_path, network, sys.executable, root=not anybody_may(sys.executable, "keras")
    )
    (made.volume / "program.py").write_text(TFPS)
    yield made
    made.close()


def tfps_job(*flags, **settings):
    return pods.Job(
        "gpt",
        topology.roles(1, 1),
        "image",
        ("python", "program.py", *flags),
        folder="/mnt",
        environ={"PYTHONPATH": "/srv"},
        **settings,
    )


@pytest.mark.timeout(180)
def test_a_tfps_job(tfps_cluster):
    """Chief and servers find one another, and all Jobs end: none starts a server again."""
    tfps_cluster.apply(manifests.of_job(tfps_job(restarts={"worker": 1, "ps": 1})))
    tfps_cluster.until(lambda: all(j.complete for j in tfps_cluster.jobs.values()), timeout=150)
    assert "trained 1" in tfps_cluster.log("gpt-chief-0")
    assert [len(j.pods) for j in tfps_cluster.jobs.values()] == [1, 1, 1]


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_tfps_job_whose_worker_is_killed(tfps_cluster):
    """A lost worker ends a tfps job today: the chief says so by its exit code, the servers too."""
    tfps_cluster.apply(manifests.of_job(tfps_job("--epochs=100000")))
    chief, ps = tfps_cluster.jobs["chief"].pods[0], tfps_cluster.jobs["ps"].pods[0]
    reached = pathlib.Path(tfps_cluster.folder / "gpt-worker-0.log")
    tfps_cluster.until(lambda: "serves" in reached.read_text(), timeout=60)
    tfps_cluster.until(lambda: chief.process.poll() is None, timeout=1)
    subprocess.run(["sleep", "10"], check=True)  # It trains meanwhile.
    tfps_cluster.jobs["worker"].pods[0].signal(signal.SIGKILL)
    tfps_cluster.until(lambda: tfps_cluster.jobs["chief"].reason is not None, timeout=120)
    assert kubelet.exit_code(chief) == exit_codes.LOST
    assert kubelet.exit_code(ps) == exit_codes.LOST
