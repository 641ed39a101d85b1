"""The drop-in for TensorFlow's `ClusterCoordinator`: closures, the work queue and remote values.

May import: errors, _tf, _tf_functions, cluster.

It behaves as TensorFlow's class does, and each result stays on its worker until somebody asks for
it.
"""
