"""How long training will take, before it begins: a simulation of a cluster, and what to choose.

May import: errors, exit_codes.

It is arithmetic on what was measured, in plain Python: no TensorFlow, no servers. The same profile,
fleet and seed give the same figures.
"""
