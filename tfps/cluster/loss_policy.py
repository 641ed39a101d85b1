"""What is done about lost tasks: who is waited for, how long, and where a lost ps goes."""

from collections.abc import Sequence
from typing import NamedTuple

from tfps import errors
from tfps.cluster import sockets


class LossPolicy(NamedTuple):
    """What is done about lost tasks.

    Attributes:
      min_workers: how many workers have to live for work to go on.
      task_timeout: s to wait for a lost ps, or for workers below `min_workers`, to return.
      on_lost_ps: "wait", or "reshard": a living ps takes the part of one that does not return.
      spare: `host:port` of servers that may take a lost ps's place, beyond those of the cluster.
    """

    min_workers: int = 1
    task_timeout: float = 300.0
    on_lost_ps: str = "wait"
    spare: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, min_workers: int, task_timeout: float, on_lost_ps: str, spare: Sequence[str] | str
    ) -> "LossPolicy":
        """Checks what the user gave; see `tfps.Trainer`.

        Raises:
          ConfigError: names the argument, its value and what is expected.
        """
        if isinstance(min_workers, bool) or not isinstance(min_workers, int) or min_workers < 1:
            raise errors.ConfigError(f"min_workers={min_workers!r} must be a whole number above 0")
        if not task_timeout >= 0:
            raise errors.ConfigError(f"task_timeout={task_timeout!r} must be at least 0 s")
        if on_lost_ps not in ("wait", "reshard"):
            raise errors.ConfigError(f'on_lost_ps={on_lost_ps!r} must be "wait" or "reshard"')
        addresses = (spare,) if isinstance(spare, str) else tuple(spare)
        for address in addresses:
            try:
                sockets.split(address)
            except errors.ClusterConfigError as e:
                raise errors.ConfigError(f"spare={spare!r}: {e}") from e
        return cls(min_workers, task_timeout, on_lost_ps, addresses)


DEFAULT = LossPolicy()
