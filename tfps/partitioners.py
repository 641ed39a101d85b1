"""How variables are split over the parameter servers; see `tfps.store.partitioners`."""

from tfps.store.partitioners import Balanced, FixedShards, MaxSize, MinSize

__all__ = ["Balanced", "FixedShards", "MaxSize", "MinSize"]
