"""The models of all systems as numbers: shapes, first weights, batches. Needs NumPy only."""

import dataclasses
import json
import os

import numpy as np

from benchmarks.wire.sizes import WORKERS

LEARNING_RATE = 0.05
_POOL = 16  # batches of a worker that differ; then they come again


@dataclasses.dataclass(frozen=True)
class Network:
    """A table of embeddings, or numbers, and a stack of dense layers with ReLU between them.

    Attributes:
      inputs: numbers of an example, or ids of an example if there is a table.
      units: of each dense layer; the last one has no ReLU.
      batch: examples of a worker's batch.
      rows: of the table; 0 if there is none.
      width: of a row.
    """

    inputs: int
    units: tuple[int, ...]
    batch: int
    rows: int = 0
    width: int = 0

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the variables, in Keras's order: table, then kernel and bias of each layer."""
        found: list[tuple[int, ...]] = [(self.rows, self.width)] if self.rows else []
        size = self.inputs * (self.width or 1)
        for units in self.units:
            found += [(size, units), (units,)]
            size = units
        return found

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(shape)) for shape in self.shapes)


NETWORKS = {
    "dense": Network(inputs=256, units=(1024, 1024, 1024, 1), batch=64),
    "embedding": Network(inputs=8, units=(64, 1), batch=256, rows=2_000_000, width=8),
    # For comparing weights.
    "small dense": Network(inputs=16, units=(32, 32, 1), batch=16),
    "small embedding": Network(inputs=8, units=(16, 1), batch=16, rows=100, width=4),
}


def weights(network: Network) -> list[np.ndarray]:
    """The first weights, float32, in the order of `shapes`; all systems begin with these."""
    rng = np.random.default_rng(1)
    return [
        (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)
        if len(shape) == 2 and shape != (network.rows, network.width)
        else 0.1 * rng.standard_normal(shape, np.float32)
        for shape in network.shapes
    ]


def batches(network: Network, worker: int) -> tuple[np.ndarray, np.ndarray]:
    """A worker's batches: x [_POOL, batch, inputs], numbers or ids, and y [_POOL, batch, 1]."""
    rng = np.random.default_rng([2, worker])
    shape = (_POOL, network.batch, network.inputs)
    if network.rows:
        x = rng.integers(network.rows, size=shape, dtype=np.int32)
    else:
        x = rng.standard_normal(shape, np.float32)
    return x, rng.standard_normal((*shape[:2], 1), np.float32)


def global_batches(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """The batches of all workers side by side: x [_POOL, WORKERS * batch, inputs], and y."""
    parts = [batches(network, worker) for worker in range(WORKERS)]
    x, y = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return x, y


def save(weights: list[np.ndarray], path: str) -> None:
    """Writes weights in the order of `Network.shapes`, each process to a file of its own.

    Args:
      weights: arrays.
      path: the beginning of the file's name; the process's rank follows.
    """
    task = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {})
    rank = os.environ.get("RANK", task.get("index", 0))
    np.savez(f"{path}-{rank}.npz", *weights)
