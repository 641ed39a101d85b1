"""GPUs are dealt out to workers; no machine of these tests has one."""

import os
import pathlib
import stat

import pytest
import tensorflow as tf

import tfps
from tfps.cluster import environment, gpus
from tfps.cluster.devices import WorkerDevices, own_device


def nvidia_smi(folder, script):
    """The environment of a machine whose `nvidia-smi` is this shell script."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("script", "ids"),
    [
        ('[ "$1" = --query-gpu=index ] && printf "0\\n1\\n2\\n"', ["0", "1", "2"]),
        ("echo 'NVIDIA-SMI has failed'; exit 9", []),
    ],
)
def test_nvidia_smi_is_asked(tmp_path, monkeypatch, script, ids):
    nvidia_smi(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpus.visible({}) == ids


@pytest.mark.processes
def test_a_machine_without_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.visible({}) == []


@pytest.mark.parametrize(
    ("given", "ids"),
    [("", []), ("-1", []), ("2,0", ["2", "0"]), ("1,-1,2", ["1"]), ("GPU-8f, 3", ["GPU-8f", "3"])],
)
def test_cuda_visible_devices_decides(given, ids):
    assert gpus.visible({"CUDA_VISIBLE_DEVICES": given}) == ids


@pytest.mark.parametrize(
    ("count", "workers", "expected"),
    [
        (4, 2, ["0,1", "2,3"]),
        (5, 2, ["0,1", "2,3"]),
        (2, 2, ["0", "1"]),
        (2, 3, ["0", "1", "0"]),
    ],
)
def test_dealt(count, workers, expected):
    ids = [str(i) for i in range(count)]
    dealt = gpus.dealt(ids, workers)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in dealt] == expected
    assert {one["CUDA_DEVICE_ORDER"] for one in dealt} == {"PCI_BUS_ID"}


def test_without_gpus_nothing_is_set():
    assert gpus.dealt([], 2) == [{}, {}] and gpus.hidden([]) == {}
    assert gpus.hidden(["0"]) == {"CUDA_VISIBLE_DEVICES": "-1"}


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_processes_get_what_was_dealt(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, 'printf "0\\n1\\n"')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with tfps.LocalCluster(2, 1, processes=True, cpu_devices=3) as cluster:
        seen = []
        for process in cluster._processes:
            while not (text := pathlib.Path(f"/proc/{process.pid}/environ").read_text()):
                assert process.poll() is None  # It is empty for a moment while Linux starts it.
            variables = dict(v.split("=", 1) for v in text.split("\0") if "=" in v)
            seen.append((variables.get("CUDA_VISIBLE_DEVICES"), variables.get("TFPS_CPU_DEVICES")))
    assert seen == [("0", "3"), ("1", "3"), ("-1", None)]


@pytest.mark.parametrize("given", ["0", "-2", "two", ""])
def test_no_number_of_cpu_devices(given):
    with pytest.raises(tfps.ClusterConfigError, match="TFPS_CPU_DEVICES="):
        environment.cpu_devices({"TFPS_CPU_DEVICES": given})


CPU, GPUS = ["CPU:0"], ["CPU:0", "GPU:0", "GPU:1"]


@pytest.mark.parametrize(
    ("present", "wanted", "named", "expected"),
    [
        ([CPU, CPU], None, [], ("CPU:0", ["CPU:0"], False)),
        ([["CPU:0", "CPU:1"]], None, [], ("CPU:0", ["CPU:0"], False)),
        ([["CPU:0", "CPU:1"]], 2, [], ("CPU:0", ["CPU:0", "CPU:1"], False)),
        ([GPUS, GPUS], None, [], ("GPU:0", ["GPU:0", "GPU:1"], False)),
        ([GPUS, GPUS], 1, [], ("GPU:0", ["GPU:0"], False)),
        ([CPU, GPUS], None, [], ("GPU:0", ["GPU:0", "GPU:1"], False)),
        ([GPUS], None, ["CPU:0"], ("GPU:0", ["GPU:0", "GPU:1"], False)),
        ([GPUS], None, ["GPU:0", "GPU:1"], ("CPU:0", ["GPU:0"], True)),
        ([CPU], None, ["GPU:0", "GPU:1"], ("CPU:0", ["CPU:0"], False)),
    ],
)
def test_choice_of_devices(present, wanted, named, expected):
    host, computing, staged = expected
    chosen = WorkerDevices.choose(present, wanted, named)
    assert chosen == WorkerDevices(
        own_device(*host.split(":")), tuple(own_device(*d.split(":")) for d in computing), staged
    )


def test_more_gpus_than_there_are():
    with pytest.raises(tfps.ConfigError, match="no worker has more than 2 GPU"):
        WorkerDevices.choose([GPUS], 3, [])


def test_a_table_of_devices(connect):
    strategy = connect(1, 2, cpu_devices=3)
    lines = strategy.device_table().splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["chief", "0"], ["worker", "0"]] + [
        ["ps", str(i)] for i in range(2)
    ]
    address = strategy.cluster.spec["worker"][0]
    assert lines[2].split()[2:] == [address, "CPU:0", "CPU:1", "CPU:2"]
    assert not tf.config.get_visible_devices("GPU")
