"""Whether the synchronous systems have the weights of one process on all workers' batches."""

import glob
import os
import tempfile
from collections.abc import Sequence

import numpy as np

from benchmarks.allreduce import systems
from benchmarks.wire.fleet import Fleet
from benchmarks.wire.program import Failed
from benchmarks.wire.systems import System

STEPS = 50
TOLERANCE = 1e-5  # relative to each variable's largest value
NETWORKS = ("small dense", "small embedding")


def compare(fleet: Fleet, chosen: Sequence[System], folder: str) -> list[dict]:
    """Trains each synchronous system for `STEPS` steps of SGD from the same weights.

    Args:
      fleet: the processes.
      chosen: the systems; the ones that are not synchronous are left out.
      folder: for the files of weights.

    Returns:
      Of each network and system: `network`, `system`, and `difference`, the largest one of all
      processes that have weights, relative to each variable's largest value; or `error`.
    """
    (alone,) = [s for s in systems.SYSTEMS if s.family == "alone"]
    found = []
    for network in NETWORKS:
        expected = _train(fleet, alone, network, folder)[0]
        for system in chosen:
            if not systems.synchronous(system) or system is alone:
                continue
            row = {"network": network, "system": system.name}
            try:
                trained = _train(fleet, system, network, folder)
            except Failed as e:
                found.append({**row, "error": str(e)})
                continue
            found.append({**row, "difference": max(difference(w, expected) for w in trained)})
    return found


def _train(fleet: Fleet, system: System, network: str, folder: str) -> list[list]:
    """The weights of each process."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        message = {
            "settings": systems.of_network(system, network).settings,
            "steps": STEPS,
            "weights": os.path.join(os.path.abspath(place), "weights"),
        }
        fleet.ask(system, message, f"{STEPS} steps of {system.name}")
        return [_load(path) for path in sorted(glob.glob(os.path.join(place, "*.npz")))]


def _load(path: str) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


def difference(weights: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference of two lists of arrays, relative to each array's largest value."""
    return max(
        float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30))
        for a, b in zip(weights, expected, strict=True)
    )
