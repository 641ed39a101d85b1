"""Measurements beside TensorFlow's own strategies; each prints a table and writes JSON."""
