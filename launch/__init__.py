"""Starts a cluster: one command runs a program as every task of a job, here or on many hosts.

May import: the standard library and absl; never TensorFlow, so it starts at once on a login node.

What runs is any program that reads TF_CONFIG. Every task's output is shown, what dies is started
again within its budget, exit codes have one table (`exit_codes.py`), and no process is left behind.
A launcher is a file against the protocol of `launcher.py`.
"""
