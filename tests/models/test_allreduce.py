"""All-reduce from the binaries: equal weights, flags, lost workers."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from absl.testing import flagsaver

import tfps
from models import allreduce, task, watchdog, workers
from tests.models import allreduce_program as program

ROOT = pathlib.Path(tfps.__file__).parent.parent
TINY = [
    *("--layers=1", "--width=16", "--heads=2", "--context=16", "--batch_size=4"),
    *("--validation_steps=4", "--generate_tokens=5"),
]

task.FLAGS.mark_as_parsed()


def addresses(count):
    from tfps.cluster import sockets

    return [f"127.0.0.1:{port}" for port in sockets.free_ports(count)]


@contextlib.contextmanager
def started(command, cluster=None):
    """Starts the command, or the command as every task of a cluster; yields name -> process."""
    tasks = [(job, i) for job, all_ in (cluster or {"only": [0]}).items() for i in range(len(all_))]
    processes = {}
    environ = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    for job, index in tasks:
        if cluster:
            config = {"cluster": cluster, "task": {"type": job, "index": index}}
            environ["TF_CONFIG"] = json.dumps(config)
        processes[f"{job} {index}"] = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
    try:
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def outcome(process, timeout=250):
    """(exit code, standard output, standard error)."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def in_one_process():
    made = program.model()
    ids, y = program.data()
    history = made.fit(
        ids, y, batch_size=program.REPLICAS * program.BATCH, shuffle=False, verbose=0,
        validation_data=(ids[:60], y[:60]), validation_batch_size=16,
    ).history  # fmt: skip
    logs = [history[name][-1] for name in ("loss", "mae", "val_loss", "val_mae")]
    return made.get_weights(), logs


def assert_equal(weights, expected):
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["mirrored", "multiworker"])
def test_all_reduce_is_one_process_on_all_batches(strategy, tmp_path):
    cluster = {"worker": addresses(2)} if strategy == "multiworker" else None
    command = ["tests.models.allreduce_program", f"{tmp_path}/w.npz", f"--strategy={strategy}"]
    with started(command, cluster) as processes:
        for name, process in processes.items():
            code, _, err = outcome(process)
            assert code == 0, f"{name}: {err}"
    with np.load(tmp_path / "w.npz") as file:
        *weights, logs = (file[name] for name in file.files)
    expected, expected_logs = in_one_process()
    assert_equal(weights, expected)
    np.testing.assert_allclose(logs, expected_logs, rtol=1e-4)


def test_sync_is_one_process_on_all_batches(connect):
    made = program.model()
    trainer = tfps.Trainer(made, connect(workers=2, ps=2), tfps.Sync())
    ids, y = program.data()
    trainer.fit(ids, y, batch_size=program.BATCH, shuffle=False, verbose=0)
    assert_equal(made.get_weights(), in_one_process()[0])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"strategy": "mirrored", "push": "int8"}, "--push=int8 is for parameter servers"),
        ({"strategy": "keras", "workers": 3}, "--workers=3 is for parameter servers"),
        ({"strategy": "multiworker", "ps": 3}, "--ps=3 is for parameter servers"),
        ({"strategy": "mirrored", "communication": "ring"}, "--communication=ring is for --str"),
        ({"devices": 2}, "--devices=2 is for --strategy=mirrored; this is --strategy=ps"),
    ],
)  # fmt: skip
def test_flags_without_a_meaning_are_refused(flags, said):
    with flagsaver.flagsaver():
        task.FLAGS(["program", *(f"--{name}={value}" for name, value in flags.items())])
        with pytest.raises(tfps.ConfigError, match=f"^{said}"):
            allreduce.check_flags()


def test_mirrored_is_one_process(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    with (
        flagsaver.flagsaver(strategy="mirrored"),
        pytest.raises(tfps.ConfigError, match="one process; unset it, or use --strategy=multi"),
    ):
        allreduce.check_flags()


def test_a_scaled_loss_is_refused():
    made = program.model()
    allreduce.check_model(made)
    made.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), "mse")
    with pytest.raises(tfps.ConfigError, match="use bfloat16 or float32, or --strategy=ps"):
        allreduce.check_model(made)


def config(cluster, job="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs TF_CONFIG, which is not set.*--strategy=mirrored"),
        ("{", "not as expected.*JSONDecodeError"),
        ("[]", "not as expected"),
        ('{"cluster": {"worker": ["a:1"]}}', "not as expected.*task"),
        (config({"worker": ["a:1"], "ps": ["b:1"]}), "names the ps .*use --strategy=ps"),
        (config({"worker": ["a:1"], "boss": ["b:1"]}), "the job 'boss'"),
        (config({"worker": ["a"]}), "address 'a'; expected host:port"),
        (config({"worker": ["a:1", "a:1"]}), "repeats an address"),
        (config({"worker": ["a:1"]}, index=1), "worker 1, but TF_CONFIG has 1 of worker"),
        (config({"worker": ["a:1"]}, job="chief"), "chief 0, but TF_CONFIG has 0 of chief"),
    ],
)  # fmt: skip
def test_tf_config_errors(text, said):
    with pytest.raises(tfps.ClusterConfigError, match=said) as e:
        workers.from_env({"TF_CONFIG": text})
    assert "\n" not in str(e.value)


def test_who_saves():
    with_chief = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    for job, index, chief in [("chief", 0, True), ("worker", 0, False), ("worker", 1, False)]:
        found = workers.from_env({"TF_CONFIG": config(with_chief, job, index)})
        assert found.chief == chief
        assert len(found.others) == 2
    without = {"worker": ["b:1", "c:1"]}
    for index, chief in [(0, True), (1, False)]:
        assert workers.from_env({"TF_CONFIG": config(without, index=index)}).chief == chief


def test_watchdog():
    expired = []
    watch = watchdog.Watchdog(expired.append)
    with watch.limit(60.0, lambda: "from nobody"), watch.limit(0.1, lambda: "from worker 1"):
        time.sleep(1.0)
    assert expired == ["no answer within 0.1 s from worker 1"]
    with watch.limit(60.0, lambda: "from nobody"):
        time.sleep(0.5)
    time.sleep(0.5)
    assert len(expired) == 1


def test_who_was_lost():
    cluster = {"worker": addresses(2), "chief": addresses(1)}  # Nobody listens there.
    found = workers.from_env({"TF_CONFIG": config(cluster, index=1)})
    both = f"lost chief 0 at {cluster['chief'][0]}, worker 0 at {cluster['worker'][0]} ("
    assert found.lost("Socket closed").startswith(both)
    with socket.socket() as one, socket.socket() as two:
        for name, listener in [("chief", one), ("worker", two)]:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            cluster[name][0] = f"127.0.0.1:{listener.getsockname()[1]}"
        found = workers.from_env({"TF_CONFIG": config(cluster, index=1)})
        said = found.lost("Collective ops is aborted by: from /job:worker/task:0: no heartbeats")
        assert said.startswith(f"lost worker 0 at {cluster['worker'][0]} (TensorFlow: from /job")
        said = found.lost("Deadline Exceeded RPC: /tensorflow.CoordinationService/Heartbeat")
        assert said.startswith(f"lost chief 0 at {cluster['chief'][0]} (")
        assert found.lost("no idea") == "lost a worker (TensorFlow: no idea)"


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_language_model_on_two_workers(tmp_path):
    """Also: only the chief prints and saves, and callbacks have all workers' logs."""
    (tmp_path / "text.txt").write_bytes(b"def f(x):\n    return x + 1\n" * 400)
    cluster = {"chief": addresses(1), "worker": addresses(1)}
    command = [
        "models.gpt", "--strategy=multiworker", f"--data={tmp_path}/text.txt", *TINY, "--epochs=2",
        f"--save={tmp_path}/m.keras", f"--log_dir={tmp_path}/log", "--steps_per_epoch=40",
        "--communication=ring", "--dropout=0.1",
    ]  # fmt: skip
    with started(command, cluster) as processes:
        code, out, err = outcome(processes["chief 0"])
        assert code == 0, err
        assert "on each of 2 replicas (all-reduce, ring)" in out
        assert "20/20" in out
        assert out.count("bits per byte") == 3
        code, out, err = outcome(processes["worker 0"])
        assert (code, out) == (0, ""), err
    keras.models.load_model(tmp_path / "m.keras")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "m.keras", "text.txt"]
    assert len(list((tmp_path / "log" / "train").glob("events*"))) == 1


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_language_model_on_two_devices(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"def f(x):\n    return x + 1\n" * 400)
    command = [
        "models.gpt", "--strategy=mirrored", f"--data={tmp_path}/text.txt", *TINY, "--epochs=1",
        f"--save={tmp_path}/m.keras", f"--log_dir={tmp_path}/log", "--steps_per_epoch=40",
    ]  # fmt: skip
    with started(command) as processes:
        code, out, err = outcome(processes["only 0"])
    assert code == 0, err
    assert "on each of 2 devices (all-reduce in one process)" in out
    assert "20/20" in out
    keras.models.load_model(tmp_path / "m.keras")


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("how", "lost"),
    [
        (signal.SIGKILL, 0),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.soak),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.soak),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.soak),
    ],
)
def test_a_lost_worker_ends_the_others(how, lost, tmp_path):
    """Within seconds: TensorFlow's heartbeats notice also a worker that is frozen."""
    (tmp_path / "text.txt").write_bytes(b"def f(x):\n    return x + 1\n" * 400)
    command = [
        "models.gpt", "--strategy=multiworker", f"--data={tmp_path}/text.txt", *TINY,
        f"--save={tmp_path}/m.keras", f"--log_dir={tmp_path}/log", "--epochs=100000",
        "--steps_per_epoch=40", "--collective_timeout=200",
    ]  # fmt: skip
    with started(command, {"worker": addresses(2)}) as processes:
        chief = processes["worker 0"]
        assert any("bits per byte" in line for line in chief.stdout)
        processes[f"worker {lost}"].send_signal(how)
        code, _, err = outcome(processes[f"worker {1 - lost}"])
    assert code == 75
    (line,) = err.strip().splitlines()
    assert line.startswith(f"error: lost worker {lost} at 127.0.0.1:")
    assert line.endswith("; start the job again")


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.parametrize("absent", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_a_worker_that_does_not_come(absent):
    """Worker 0 leads TensorFlow's coordination service, so its absence is another case."""
    cluster = addresses(2)
    command = ["models.gpt", "--strategy=multiworker", "--startup_timeout=5"]
    with started(command, {"worker": cluster}) as processes:
        processes[f"worker {absent}"].kill()
        code, _, err = outcome(processes[f"worker {1 - absent}"])
    assert code == 75
    (line,) = err.strip().splitlines()
    said = f"error: no answer within 5 s from worker {absent} at {cluster[absent]} (--startup_time"
    assert line.startswith(said)
