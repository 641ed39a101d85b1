"""A Keras model and its optimizer as pure functions of tensors.

May import: errors, _keras, _keras_variables, _tf, cluster.

Nothing here knows of servers, workers or the network. The functions write nothing: the values of
variables and the optimizer's state come in as tensors and go out as tensors. What creates
variables (`ServerOptimizer`, `RowOptimizer`, `LossScale`) creates them on the current device.
"""
