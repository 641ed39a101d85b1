"""Training with tfps, as a binary's way of training."""

import contextlib

import keras

import tfps
from models import network
from models.way import DatasetFn


class ParameterServers:
    """The `Way` of `--strategy=ps`: a chief, workers and parameter servers."""

    chief = True  # Workers and ps run no training loop.
    batches_per_step = 1

    def __init__(self, strategy: tfps.ParameterServerStrategy):
        """Takes a connected strategy."""
        self.strategy = strategy

    def scope(self) -> contextlib.AbstractContextManager:
        return self.strategy.scope()

    def describe(self) -> str:
        cluster = self.strategy.cluster
        return f"{cluster.num_ps} ps, {cluster.num_workers} workers"

    def updates(self, steps: int) -> int:
        return network.updates(steps, self.strategy.cluster.num_workers)

    def reading(self, dataset_fn: DatasetFn) -> DatasetFn:
        return dataset_fn

    def trainer(self, model: keras.Model) -> tfps.Trainer:
        return tfps.Trainer(model, self.strategy, **network.arguments())

    def callbacks(self, log_dir: str) -> list[keras.callbacks.Callback]:
        return [network.ShowPlacement(self.strategy, log_dir)]

    def traffic(self, trainer: tfps.Trainer) -> str:
        return network.traffic(trainer)

    def path(self, path: str) -> str:
        return path
