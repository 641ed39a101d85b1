"""Tests of `tfps/planning/`: laws of the simulation, the search, the command."""
