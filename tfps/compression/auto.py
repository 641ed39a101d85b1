"""The codec that is not chosen yet."""

import dataclasses

from tfps.compression.base import Codec, Identity


@dataclasses.dataclass(frozen=True)
class Auto(Identity):
    """Sends tensors as they are until a codec has been chosen in its place.

    The choice is made while training goes on, from how long its first steps took and from the
    speed of the links: see `tfps.Trainer`. Variables smaller than `min_bytes` are never compressed.
    """

    def for_rows(self, weights: bool = False) -> Codec:
        return self
