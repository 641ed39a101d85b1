"""Environment variables that TensorFlow reads when a process starts to use it.

They have to be set before the process makes its first connection or first uses XLA. What the user
has set stays in force.
"""

import contextlib
import math
import os
from collections.abc import Mapping, MutableMapping

import tensorflow as tf

from tfps import errors

# TensorFlow (2.21) reads this variable when a process makes its first channel. The names and
# meanings of the options are those of gRPC's channel arguments.
CHANNEL_VARIABLE = "TF_GRPC_DEFAULT_OPTIONS"

CHANNEL_OPTIONS = {
    # While a call waits for an answer, the other side is asked this often whether it is still
    # there. gRPC's servers hang up on clients that ask more often than every 5 minutes.
    "grpc.keepalive_time_ms": 330_000,
    # By default, gRPC asks at most twice while nothing else is sent; 0 lifts that limit.
    "grpc.http2.max_pings_without_data": 0,
    # How long an answer to that question, or TCP's acknowledgement of any data, may be missing.
    "grpc.keepalive_timeout_ms": 60_000,
}

XLA_VARIABLE = "XLA_FLAGS"

# How many CPU devices a worker's process has; see `cpu_devices`.
CPU_VARIABLE = "TFPS_CPU_DEVICES"

# For how many s servers wait for the next chief after the loss of one; see `chief_timeout`.
CHIEF_VARIABLE = "TFPS_CHIEF_TIMEOUT"

# For how many s a chief waits for its servers; see `startup_timeout`.
STARTUP_VARIABLE = "TFPS_STARTUP_TIMEOUT"

# XLA for CPUs in TensorFlow 2.21 gives some reductions, such as the largest magnitude of each
# block of `Int8`, to a library (YNNPACK), which compiles a program when a reduction first runs. A
# ps on which two workers made their first pull at the same time was seen to crash there. The
# flag is set for this version only, because XLA ends a process that sets a flag it does not know.
_XLA_VERSION = "2.21."
_XLA_FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def configure_channels(environ: MutableMapping[str, str] = os.environ) -> None:
    """Limits how long a call to a vanished host may take: 60 s if it sends, 390 s if it waits.

    A host that loses power, or its cable, closes no connection. TCP by itself retransmits for a
    quarter of an hour what is not acknowledged, and waits for ever for an answer. The chief and
    the servers call this before they connect to anything.
    """
    given = environ.get(CHANNEL_VARIABLE, "")
    named = {option.split("=")[0] for option in given.split(",")}
    own = [f"{name}={value}" for name, value in CHANNEL_OPTIONS.items() if name not in named]
    environ[CHANNEL_VARIABLE] = ",".join(([given] if given else []) + own)


def hide_gpus() -> None:
    """Keeps this process's own operations off its GPUs; the chief and a ps call this.

    A TensorFlow process that sees a GPU takes memory there, which the workers on the same machine
    need. A process that has used a device before keeps what it has, since TensorFlow can then hide
    nothing any more. Servers within this process have a configuration of their own.
    """
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


def cpu_devices(environ: Mapping[str, str] = os.environ) -> int:
    """Returns how many CPU devices TFPS_CPU_DEVICES gives a worker, by default 1.

    Raises:
      ClusterConfigError: the variable is no number above 0.
    """
    given = environ.get(CPU_VARIABLE, "1")
    if not given.isdecimal() or int(given) < 1:
        raise errors.ClusterConfigError(
            f"{CPU_VARIABLE}={given!r} is not a number of devices; set it to 1 or more, or not at "
            "all"
        )
    return int(given)


def chief_timeout(environ: Mapping[str, str] = os.environ) -> float:
    """Returns for how many s TFPS_CHIEF_TIMEOUT lets a server wait for the next chief, or 300.

    Raises:
      ClusterConfigError: the variable is no number of seconds.
    """
    return _seconds(CHIEF_VARIABLE, "300", environ)


def startup_timeout(environ: Mapping[str, str] = os.environ) -> float:
    """Returns for how many s TFPS_STARTUP_TIMEOUT lets a chief wait for its servers, or 60.

    Raises:
      ClusterConfigError: the variable is no number of seconds.
    """
    return _seconds(STARTUP_VARIABLE, "60", environ)


def _seconds(variable: str, default: str, environ: Mapping[str, str]) -> float:
    given = environ.get(variable, default)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise errors.ClusterConfigError(
            f"{variable}={given!r} is not a number of seconds; set it to 0 or more, or not at all"
        )
    return seconds


def configure_xla(environ: MutableMapping[str, str] = os.environ) -> None:
    """Makes XLA compile reductions itself, without YNNPACK; a ps calls this before it uses XLA."""
    flags = environ.get(XLA_VARIABLE, "")
    if tf.__version__.startswith(_XLA_VERSION) and _XLA_FLAG not in flags:
        environ[XLA_VARIABLE] = f"{flags} {_XLA_FLAG}=".strip()
