"""`python -m tfps.plan --profile=FILE`: how fast a model will train, and what to choose.

`tfps.plan(...)` is the same as a function. See `docs/planning.md`.
"""

import sys
import types

from tfps.planning.command import main
from tfps.planning.fleet import Fleet
from tfps.planning.prediction import Prediction, simulate
from tfps.planning.profile import Profile
from tfps.planning.search import Plan, plan
from tfps.planning.setting import Setting

__all__ = ["Fleet", "Plan", "Prediction", "Profile", "Setting", "main", "plan", "simulate"]


class _Callable(types.ModuleType):
    """This module, which can be called: importing it makes `tfps.plan` name the module."""

    __call__ = staticmethod(plan)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
