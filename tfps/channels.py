"""How TensorFlow's gRPC channels notice that a host is gone without a word.

A host that loses power, or its cable, closes no connection. TCP by itself sends what
is unanswered again for a quarter of an hour, and waits for an answer for ever.
"""

import os
from collections.abc import MutableMapping

# Read by TensorFlow (2.21) when a process makes its first channel; names and meanings
# are those of gRPC's channel arguments.
VARIABLE = "TF_GRPC_DEFAULT_OPTIONS"

OPTIONS = {
    # A call that waits: the other side is asked. gRPC's servers hang up on those who ask
    # more often than every 5 minutes.
    "grpc.keepalive_time_ms": 330_000,
    # Not more than 2 questions, by default, while nothing else is sent.
    "grpc.http2.max_pings_without_data": 0,
    # An answer to that, or TCP's acknowledgement of anything, is missing for so long.
    "grpc.keepalive_timeout_ms": 60_000,
}


def configure(environ: MutableMapping[str, str] = os.environ) -> None:
    """Gives calls to a host that has vanished an end: 60 s if they send, 390 s if they wait.

    Options that the user has set count. To be called before this process is
    connected to anything, by servers as well as by the chief.
    """
    given = environ.get(VARIABLE, "")
    named = {option.split("=")[0] for option in given.split(",")}
    own = [f"{name}={value}" for name, value in OPTIONS.items() if name not in named]
    environ[VARIABLE] = ",".join(([given] if given else []) + own)
