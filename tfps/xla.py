"""XLA on parameter servers, where functions of several workers run at the same time."""

import os
from collections.abc import MutableMapping

import tensorflow as tf

VARIABLE = "XLA_FLAGS"

# XLA for CPUs in TensorFlow 2.21 gives some reductions, such as the largest magnitude of each
# block of `Int8`, to a library (YNNPACK), whose program it makes when they first run. A ps
# on which two workers made their first pull at the same time was seen to crash there. Other
# versions may not know the flag, and XLA ends a process that sets one that it does not know.
_VERSION = "2.21."
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def configure(environ: MutableMapping[str, str] = os.environ) -> None:
    """Leaves reductions to XLA itself; to be called before this process uses XLA.

    What the user has set for it counts.
    """
    flags = environ.get(VARIABLE, "")
    if tf.__version__.startswith(_VERSION) and _FLAG not in flags:
        environ[VARIABLE] = f"{flags} {_FLAG}=".strip()
