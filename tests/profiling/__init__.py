"""Tests of `tfps/profiling/`."""
