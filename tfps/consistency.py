"""Consistency policies, and what a policy of one's own consists of."""

from tfps.training.consistency import (
    POLICIES,
    Async,
    BoundedStaleness,
    LocalSteps,
    Sync,
    parse,
)
from tfps.training.policy import ConsistencyPolicy, Exchange, ModelAverage
from tfps.training.schedule import Clocks, Rounds, RoundSchedule, Schedule

# The name of before there was a base class.
Consistency = ConsistencyPolicy

__all__ = [
    "POLICIES",
    "Async",
    "BoundedStaleness",
    "Clocks",
    "ConsistencyPolicy",
    "Exchange",
    "LocalSteps",
    "ModelAverage",
    "RoundSchedule",
    "Rounds",
    "Schedule",
    "Sync",
    "parse",
]
