"""What a table of hashed rows is to do: the arguments of the layer, checked."""

import math
from typing import NamedTuple

from tfps import errors
from tfps.embeddings.initial_rows import InitialRows

POLICIES = ("lfu", "lru", "none")
ROW_DTYPES = ("float32", "bfloat16", "int8")
# Rows of a table, at most.
LARGEST = 1 << 38


class TableSettings(NamedTuple):
    """How a table behaves, on however many servers.

    Attributes:
      width: elements of a row.
      initial: what a row begins with.
      expected: number of keys for which all servers together reserve room.
      capacity: rows of a server, at most; None for 17 times what it reserves.
      admit_after: how many updates must have named a key before it has a row.
      expire_after: a row that no update has named for more than so many updates of its server is as
        if it had never been; None for never.
      evict: which rows go when the table is full: "lfu" those that the fewest updates have named,
        "lru" those that were not named for longest, "none" no row, so that new keys are refused.
      row_dtype: how rows are kept: "float32", "bfloat16" or "int8" (with one scale for each row).
    """

    width: int
    initial: InitialRows
    expected: int
    capacity: int | None = None
    admit_after: int = 1
    expire_after: int | None = None
    evict: str = "lfu"
    row_dtype: str = "float32"

    def checked(self) -> "TableSettings":
        """The settings themselves.

        Raises:
          ConfigError: a setting is out of its range.
        """
        ranges = {
            "output_dim": (self.width, 1, 1 << 20),
            "expected": (self.expected, 1, LARGEST),
            "capacity": (self.capacity, 1, LARGEST),
            "admit_after": (self.admit_after, 1, 255),
            "expire_after": (self.expire_after, 1, 1 << 40),
        }
        for name, (value, low, high) in ranges.items():
            if value is not None and not (type(value) is int and low <= value <= high):
                raise errors.ConfigError(
                    f"{name}={value!r} must be an integer from {low} to {high}; give another one"
                )
        choices = {"evict": (self.evict, POLICIES), "row_dtype": (self.row_dtype, ROW_DTYPES)}
        for name, (choice, known) in choices.items():
            if choice not in known:
                raise errors.ConfigError(
                    f"{name}={choice!r} must be one of {', '.join(map(repr, known))}"
                )
        return self

    def reserved(self, servers: int) -> int:
        """Rows for which one of so many servers reserves room; keys do not spread evenly."""
        share = self.expected / servers
        rows = math.ceil(share + (4 * math.sqrt(share) + 16 if servers > 1 else 0))
        return rows if self.capacity is None else min(rows, self.capacity)
