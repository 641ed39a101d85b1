"""Serving a trained model: a SavedModel of stock operations, and what has changed since.

May import: errors, _keras_models, _keras_variables, embeddings, model, training.

A served model answers each request from one state; another state takes its place at once.
"""

from tfps.serving.deltas import delta
from tfps.serving.export import export

__all__ = ["delta", "export"]
