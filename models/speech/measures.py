"""How right transcripts are."""

from collections.abc import Sequence

import tensorflow as tf


def character_error_rate(truth: Sequence[str], found: Sequence[str]) -> float:
    """Characters to insert, delete or replace, as a share of the characters of the truth.

    Args:
      truth: what is said, n texts, not all of which are empty.
      found: what was recognized, n texts.

    Returns:
      The share over all texts together, which may be more than 1.
    """
    distances = tf.edit_distance(_characters(found), _characters(truth), normalize=False)
    return float(tf.reduce_sum(distances)) / sum(map(len, truth))


def _characters(texts: Sequence[str]) -> tf.SparseTensor:
    codes = tf.ragged.constant([[ord(c) for c in text] for text in texts], tf.int64, ragged_rank=1)
    return codes.to_sparse()
