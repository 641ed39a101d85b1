"""What runs on a worker: training, evaluation and prediction steps, each a `tf.function`.

May import: errors, _tf, cluster, compression, model, store.

A step can be read from top to bottom in the order in which the data flows. Everything that it keeps
from one call to the next is in its carry.
"""
