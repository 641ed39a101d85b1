"""Measures what a model's training consists of, for the planner: arithmetic, codecs, processes.

May import: cluster, compression, errors, model, planning, store, worker.

Everything is measured as processor time, so other programs on the same cores do not count; and on
the form of the tensors that training has. Nothing that training keeps is changed.
"""
