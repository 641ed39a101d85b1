"""Consistency policies, and how a text names one; see `tfps.training.consistency`."""

from tfps.training.consistency import (
    POLICIES,
    Async,
    BoundedStaleness,
    Consistency,
    LocalSteps,
    ModelAverage,
    Sync,
    parse,
)

__all__ = [
    "POLICIES",
    "Async",
    "BoundedStaleness",
    "Consistency",
    "LocalSteps",
    "ModelAverage",
    "Sync",
    "parse",
]
