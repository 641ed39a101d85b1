"""Parameter-server training for Keras 3 on stock TensorFlow."""

from tfps import compression, consistency, partitioners
from tfps.cluster import Cluster
from tfps.local import LocalCluster
from tfps.coordinator import ClusterCoordinator
from tfps.values import RemoteValue
from tfps.strategy import ParameterServerStrategy
from tfps.consistency import Async, BoundedStaleness, LocalSteps, ModelAverage, Sync
from tfps.data import Context
from tfps.trainer import Trainer
from tfps.server import serve
from tfps.errors import (
    ChiefLost,
    ClusterConfigError,
    ConfigError,
    DataError,
    Error,
    PortInUse,
    StartupTimeout,
    StepTimeout,
    TaskLost,
    WorkerError,
)

__all__ = [
    "Async",
    "BoundedStaleness",
    "ChiefLost",
    "Cluster",
    "ClusterConfigError",
    "ClusterCoordinator",
    "ConfigError",
    "Context",
    "DataError",
    "Error",
    "LocalCluster",
    "LocalSteps",
    "ModelAverage",
    "ParameterServerStrategy",
    "PortInUse",
    "RemoteValue",
    "StartupTimeout",
    "StepTimeout",
    "Sync",
    "TaskLost",
    "Trainer",
    "WorkerError",
    "compression",
    "consistency",
    "partitioners",
    "serve",
]

__version__ = "0.1.0"
