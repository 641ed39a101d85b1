"""Parameter-server training for Keras 3 on stock TensorFlow."""

from tfps import _quiet  # noqa: F401  Before TensorFlow is imported.
from tfps import compression, consistency, data, exit_codes, layers, partitioners
from tfps.cluster.spec import Cluster
from tfps.cluster.local import LocalCluster
from tfps.coordinator.coordinator import ClusterCoordinator
from tfps.coordinator.remote_value import RemoteValue
from tfps.strategy import ParameterServerStrategy
from tfps.consistency import Async, BoundedStaleness, LocalSteps, ModelAverage, Sync
from tfps.data import Context
from tfps.training.snapshots import Snapshots
from tfps.training.sidecar_evaluator import SidecarEvaluator
from tfps.training.trainer import Trainer
from tfps import serving
from tfps.planning.search import plan
from tfps.planning.profile import Profile
from tfps.cluster.server import serve
from tfps.errors import (
    ChiefLost,
    ClusterConfigError,
    ConfigError,
    DataError,
    Error,
    PortInUse,
    SnapshotDamaged,
    SnapshotFailed,
    StartupTimeout,
    StepTimeout,
    Superseded,
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
    "Profile",
    "RemoteValue",
    "SidecarEvaluator",
    "SnapshotDamaged",
    "SnapshotFailed",
    "Snapshots",
    "StartupTimeout",
    "StepTimeout",
    "Superseded",
    "Sync",
    "TaskLost",
    "Trainer",
    "WorkerError",
    "compression",
    "consistency",
    "data",
    "exit_codes",
    "layers",
    "partitioners",
    "plan",
    "serve",
    "serving",
]

__version__ = "0.1.0"
