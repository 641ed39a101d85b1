"""The drop-in for TensorFlow's `ClusterCoordinator`: closures, the work queue and remote values.

May import: errors, _tf, _tf_functions, cluster.

It behaves as TensorFlow's class does, and it copies results to the chief only for those who hold
them, when they wait.
"""
