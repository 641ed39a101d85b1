"""Layers for training on parameter servers: embeddings, of which `HashEmbedding` grows."""

from tfps.embeddings.dense_layer import Embedding
from tfps.embeddings.layer import HashEmbedding

__all__ = ["Embedding", "HashEmbedding"]
