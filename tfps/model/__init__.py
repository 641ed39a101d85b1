"""A Keras model and its optimizer as pure functions of tensors.

May import: errors, _keras_creation, _keras_interception, _keras_metrics, _keras_models,
_keras_optimizers, _keras_placement, _keras_variables, _tf, _tf_functions, _tf_placement,
_tf_tracing, cluster.

Nothing here knows of servers, workers or the network. The functions write nothing: the values of
variables and the optimizer's state come in as tensors and go out as tensors. What creates
variables (`ServerOptimizer`, `RowOptimizer`, `LossScale`) creates them on the current device.
"""
