"""Embedding tables that grow: an index from keys to rows, of stock operations, and the layer.

May import: errors, _keras_creation, _keras_optimizers, _keras_variables, _tf_resources.

A pull changes nothing, and never returns the row of another key.
"""
