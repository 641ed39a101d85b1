"""What was lost while training went on, and what that cost: counts, and lines for TensorBoard."""

import dataclasses
import time


@dataclasses.dataclass
class Losses:
    """Counts since the last epoch ended.

    Attributes:
      lost_workers: how often a worker was lost.
      lost_ps: how often a parameter server was lost.
      refused_pushes: pushes that came from a life that was over. A ps may have refused more than
        another; the largest count is taken.
      repeated_units: units that another worker has done again.
      lost_residuals: how often the residuals of a worker's codecs were lost with the worker.
      lines: what happened, in words, with the time of day.
    """

    lost_workers: int = 0
    lost_ps: int = 0
    refused_pushes: int = 0
    repeated_units: int = 0
    lost_residuals: int = 0
    lines: list[str] = dataclasses.field(default_factory=list)

    def say(self, line: str) -> None:
        """Notes what happened, in words."""
        self.lines.append(f"{time.strftime('%H:%M:%S')} {line}")

    def take(self) -> tuple[dict[str, float], list[str]]:
        """(name -> count, the lines), which begin anew."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        self.__init__()  # type: ignore[misc]
        lines = found.pop("lines")
        return {name: float(count) for name, count in found.items()}, lines
