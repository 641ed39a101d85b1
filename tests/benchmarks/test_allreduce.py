"""What the all-reduce benchmark computes; only the CPU quota needs root."""

import os
import time

import numpy as np
import pytest

from benchmarks.allreduce import equality, model_keras, networks, report, slowness, systems
from benchmarks.wire import report as wire_report


def test_names_are_unique_and_families_start():
    names = [s.name for s in systems.SYSTEMS]
    assert len(set(names)) == len(names)
    assert {s.family for s in systems.SYSTEMS} == set(systems.STARTS) == set(systems.NEEDS)
    assert set(systems.OFF_THE_NETWORK) < set(systems.STARTS)
    assert [s.name for s in systems.SYSTEMS if not systems.synchronous(s)] == [
        "tfps Async",
        "tfps Async, overlap 1",
    ]


@pytest.mark.parametrize("name", ["small dense", "small embedding"])
def test_the_keras_model_has_the_first_weights(name):
    network = networks.NETWORKS[name]
    expected = networks.weights(network)
    model = model_keras.build(name)
    assert model.count_params() == network.parameters
    assert [w.shape for w in model.get_weights()] == network.shapes
    assert equality.difference(model.get_weights(), expected) == 0
    x, y = networks.batches(network, 1)
    model.fit(model_keras.dataset((x, y)), steps_per_epoch=2, verbose=0)
    assert equality.difference(model.get_weights(), expected) > 1e-4


def test_global_batches_are_the_workers_side_by_side():
    network = networks.NETWORKS["small embedding"]
    whole = networks.global_batches(network)
    for worker in range(networks.WORKERS):
        part = slice(worker * network.batch, (worker + 1) * network.batch)
        for array, own in zip(whole, networks.batches(network, worker), strict=True):
            np.testing.assert_array_equal(array[:, part], own)


def test_difference_is_relative_to_each_variable():
    a, b = np.array([1.0, 2.0]), np.array([100.0, 100.0])
    assert equality.difference([a, b + 1.0], [a, b]) == pytest.approx(0.01)


def result(system, step):
    error = None if step else "lost | gone"
    return wire_report.result(system, [{"step": step}] if step else [], error)


def test_tables():
    sync, other = systems.SYSTEMS[0], systems.SYSTEMS[-1]
    places = {
        "100mbit": [result(sync, 1.5)],
        "none": [result(sync, None), result(other, 0.0123)],
        "1gbit slow": [],
    }
    assert report.table(places).splitlines() == [
        "| system | 100 Mb/s | no limit | 1 Gb/s, one worker slow |",
        "|---|---:|---:|---:|",
        f"| {sync.name} | 1,500 (1,500 to 1,500) | failed: lost / gone | — |",
        f"| {other.name} | — | 12.3 (12.3 to 12.3) | — |",
    ]


def test_equality_table():
    rows = [
        {"network": "n", "system": "a", "difference": 1e-6},
        {"network": "n", "system": "b", "difference": 1e-3},
        {"network": "n", "system": "c", "error": "x | y"},
    ]
    assert report.equality_table(rows).splitlines()[2:] == [
        "| n | a | 1.0e-06 | equal |",
        "| n | b | 1.0e-03 | DIFFERENT |",
        "| n | c | failed: x / y | MISSED |",
    ]


@pytest.mark.timed
def test_a_slowed_process_has_its_share_of_a_core():
    if reason := slowness.why_not():
        pytest.skip(reason)
    with slowness.slowed([os.getpid()], cores=0.2):
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < 1.0:
            pass
        share = (time.process_time() - cpu) / (time.perf_counter() - wall)
    assert 0.1 < share < 0.3
