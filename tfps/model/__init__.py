"""A Keras model and its optimizer as pure functions of tensors.

May import: errors, _keras.

Nothing here knows of servers, workers or the network, and nothing is written: variables and state
come in as tensors and go out as tensors.
"""
