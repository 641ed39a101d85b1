"""The machines and links that a plan is for."""

import dataclasses
import math
from typing import Any

from tfps import errors
from tfps.planning import units

# What of a link's speed is left for what programs send, with packets of 1,500 bytes: each carries
# 1,448 bytes beside the headers of TCP, IP and Ethernet.
GOODPUT = 1448 / 1514


@dataclasses.dataclass(frozen=True)
class Fleet:
    """A cluster: tasks, each on a host with a link and cores of its own, and what befalls them.

    Attributes:
      workers, ps: numbers of tasks.
      bandwidth: of the link of each host, as text: "10gbit", "50mbit/10mbit" for down and up, or
        "none".
      worker_bandwidth: of the workers' links, if theirs differ; None for `bandwidth`.
      latency: of a message from one host to another, as text: "0.2ms".
      worker_latency: of a message from or to a worker, if it differs; None for `latency`.
      cores: of each host; None for those of the machine on which the profile was measured.
      shared: whether all tasks are on one machine and share its cores, with links of their own, as
        in the network namespaces of `benchmarks.wire`.
      slow: which share of the workers takes how many times as long, as text: "0.1@10x"; None for
        equal workers.
      leaving: which share of the workers is lost in an hour.
      returning: seconds until a lost worker is back, or another one has taken its place.
      snapshots: seconds from one snapshot to the next; infinite for none.
    """

    workers: int = 2
    ps: int = 2
    bandwidth: str = "10gbit"
    worker_bandwidth: str | None = None
    latency: str = "0.2ms"
    worker_latency: str | None = None
    cores: float | None = None
    shared: bool = False
    slow: str | None = None
    leaving: float = 0.0
    returning: float = 15.0
    snapshots: float = math.inf

    def __post_init__(self) -> None:
        for name in ("workers", "ps"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise errors.ConfigError(f"{name}={count!r} must be a whole number of at least 1")
        units.both_ways(self.bandwidth)
        units.both_ways(self.worker_bandwidth or self.bandwidth, "worker_bandwidth")
        units.seconds(self.latency)
        units.seconds(self.worker_latency or self.latency, "worker_latency")
        if self.slow is not None:
            units.slow(self.slow)
        if self.cores is not None and not self.cores > 0:
            raise errors.ConfigError(f"cores={self.cores!r} must be above 0, or None")
        if not self.leaving >= 0:
            raise errors.ConfigError(
                f"leaving={self.leaving!r} must be a share of at least 0: 0.1 if a tenth of the "
                "workers is lost in an hour"
            )
        for name in ("returning", "snapshots"):
            if not getattr(self, name) >= 0 or (name == "snapshots" and not self.snapshots):
                raise errors.ConfigError(f"{name}={getattr(self, name)!r} must be above 0 s")

    def replace(self, **changes: Any) -> "Fleet":
        """The fleet with other values of some attributes."""
        return dataclasses.replace(self, **changes)

    @property
    def links(self) -> tuple[float, float]:
        """(down, up) of the links of ps and chief: bytes of programs in a second."""
        down, up = units.both_ways(self.bandwidth)
        return down * GOODPUT, up * GOODPUT

    @property
    def worker_links(self) -> tuple[float, float]:
        """(down, up) of a worker's link: bytes of programs in a second."""
        down, up = units.both_ways(self.worker_bandwidth or self.bandwidth)
        return down * GOODPUT, up * GOODPUT

    @property
    def delay(self) -> float:
        """Seconds that a message takes from a worker to another host, or back."""
        return units.seconds(self.worker_latency or self.latency)

    def slowness(self) -> list[float]:
        """Per worker, how many times as long it computes; slow workers are spread evenly."""
        share, factor = units.slow(self.slow) if self.slow else (0.0, 1.0)
        steps = [math.floor((i + 1) * share + 1e-9) > math.floor(i * share + 1e-9)
                 for i in range(self.workers)]  # fmt: skip
        return [factor if is_slow else 1.0 for is_slow in steps]
