"""Which GPUs this machine has, and who gets which."""

import os
import subprocess
from collections.abc import Mapping, Sequence

VARIABLE = "CUDA_VISIBLE_DEVICES"

# The number that a GPU has for `nvidia-smi` is by default not the number that CUDA gives it.
_IN_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

_ASK = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
_PATIENCE = 20.0  # s; the driver may have to start first


def visible(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the ids of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them.

    Without that variable `nvidia-smi` is asked. Where it is missing, or fails, there is no GPU.
    """
    given = environ.get(VARIABLE)
    if given is None:
        try:
            asked = subprocess.run(_ASK, capture_output=True, text=True, timeout=_PATIENCE)
        except (OSError, subprocess.TimeoutExpired):
            return []
        return asked.stdout.split() if asked.returncode == 0 else []
    ids = []
    for one in map(str.strip, given.split(",")):
        if not one or one.startswith("-"):
            break  # CUDA does not see what follows an id that does not exist.
        ids.append(one)
    return ids


def dealt(ids: Sequence[str], workers: int) -> list[dict[str, str]]:
    """Returns per worker the environment variables that give it its GPUs.

    Every worker gets as many, and some GPUs may be left over; if there are fewer GPUs than workers,
    workers share.

    Args:
      ids: of `visible`; without any, no variable is set.
      workers: number of workers on this machine.
    """
    if not ids:
        return [{}] * workers
    each = max(1, len(ids) // workers)
    first = [w * each % len(ids) for w in range(workers)]
    return [{**_IN_ORDER, VARIABLE: ",".join(ids[f : f + each])} for f in first]


def hidden(ids: Sequence[str]) -> dict[str, str]:
    """Returns the environment variables with which a process sees none of these GPUs."""
    return {VARIABLE: "-1"} if ids else {}
