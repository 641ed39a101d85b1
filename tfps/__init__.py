"""Parameter-server training for Keras 3 on stock TensorFlow."""

from tfps import compression, partitioners
from tfps.cluster import Cluster
from tfps.local import LocalCluster
from tfps.coordinator import ClusterCoordinator
from tfps.values import RemoteValue
from tfps.strategy import ParameterServerStrategy
from tfps.consistency import Async
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
    TaskLost,
    WorkerError,
)

__all__ = [
    "Async",
    "ChiefLost",
    "Cluster",
    "ClusterConfigError",
    "ClusterCoordinator",
    "ConfigError",
    "Context",
    "DataError",
    "Error",
    "LocalCluster",
    "ParameterServerStrategy",
    "PortInUse",
    "RemoteValue",
    "StartupTimeout",
    "TaskLost",
    "Trainer",
    "WorkerError",
    "compression",
    "partitioners",
    "serve",
]

__version__ = "0.1.0"
