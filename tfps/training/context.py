"""What a `dataset_fn` is told about the worker that it makes a dataset for."""

import dataclasses
from collections.abc import Sequence

from tfps import errors


@dataclasses.dataclass(frozen=True)
class Context:
    """The worker for which a `dataset_fn` makes a dataset.

    Attributes:
      worker_index: int, from 0 to `num_workers` - 1.
      num_workers: int.
    """

    worker_index: int
    num_workers: int

    def shard(self, items: Sequence) -> list:
        """This worker's share of a sequence such as file names: every `num_workers`-th item.

        Raises:
          DataError: there are fewer items than workers, so that a worker would have none.
        """
        items = list(items)
        if len(items) < self.num_workers:
            raise errors.DataError(
                f"{len(items)} item(s) to share between {self.num_workers} workers; give at least "
                "one for each, or shard the examples with Dataset.shard"
            )
        return items[self.worker_index :: self.num_workers]
