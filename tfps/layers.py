"""Layers for training on parameter servers: `HashEmbedding`, an embedding that grows."""

from tfps.embeddings.layer import HashEmbedding

__all__ = ["HashEmbedding"]
