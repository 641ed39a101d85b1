"""Beam search for the likeliest translation."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from models import feeding
from models.translation.model import halves, longest_of
from models.translation.tokens import BEGIN, END, PADDING

_AT_ONCE = 32  # sentences

# Tokens [rows, t] -> log-probabilities of the token that follows, [rows, vocabulary].
Following = Callable[[np.ndarray], np.ndarray]


def translate(
    model: keras.Model, sources: Sequence[np.ndarray], beam: int, penalty: float
) -> list[np.ndarray]:
    """Translates sentences, in this process alone.

    Args:
      model: a model of `model.build`.
      sources: tokens of each sentence, int32 [n].
      beam: number of beginnings that are followed at the same time; 1 is greedy.
      penalty: exponent of the length by which scores are divided; see `search`.

    Returns:
      The tokens of each translation, int64 [n].
    """
    encoder, decoder = halves(model)
    following = _traced(decoder)
    found: list[np.ndarray] = [np.zeros(0, np.int64)] * len(sources)
    there = [i for i, source in enumerate(sources) if len(source)]  # Nothing becomes nothing.
    for places in feeding.groups_by_length([len(sources[i]) for i in there], _AT_ONCE):
        group = [there[place] for place in places]
        longest = max(len(sources[i]) for i in group)
        x = np.stack([np.pad(sources[i], (0, longest - len(sources[i]))) for i in group])
        x = np.repeat(x, beam, 0).astype(np.int32)
        memory = encoder(x, training=False)
        tokens = search(
            lambda begun, m=memory, s=x: following(m, s, begun.astype(np.int32)).numpy(),
            len(group),
            beam,
            min(2 * longest + 10, longest_of(model)),
            penalty,
        )
        for i, translation in zip(group, tokens, strict=True):
            found[i] = translation
    return found


def search(
    following: Following, count: int, beam: int, longest: int, penalty: float
) -> list[np.ndarray]:
    """The best sentences that a beam search finds.

    The score of a sentence is its log-probability divided by ((5 + length) / 6) ** penalty (Wu et
    al., 2016), so that short ones are not preferred.

    Args:
      following: says what follows beginnings, [count * beam, t], those of a sentence in succession.
      count: number of sentences.
      beam: number of beginnings of each.
      longest: most tokens of a sentence, the mark of its end included.
      penalty: see above.

    Returns:
      Tokens of each sentence, int64 [n], without marks.
    """
    tokens = np.full([count, beam, 1], BEGIN, np.int64)
    scores = np.tile([0.0] + [-np.inf] * (beam - 1), [count, 1])  # All beginnings are equal.
    ended = np.zeros([count, beam], bool)
    while not ended.all() and tokens.shape[2] <= longest:
        chances = following(tokens.reshape(count * beam, -1)).reshape(count, beam, -1)
        only_padding = np.full(chances.shape[2], -np.inf)
        only_padding[PADDING] = 0.0
        chances = np.where(ended[..., None], only_padding, chances.astype(np.float64))
        totals = (scores[..., None] + chances).reshape(count, -1)
        best = np.argsort(-totals, 1, kind="stable")[:, :beam]
        rows, words = np.divmod(best, chances.shape[2])
        scores = np.take_along_axis(totals, best, 1)
        ended = np.take_along_axis(ended, rows, 1) | (words == END)
        tokens = np.take_along_axis(tokens, rows[..., None], 1)
        tokens = np.concatenate([tokens, words[..., None]], 2)
    lengths = (tokens[..., 1:] != PADDING).sum(2)
    scores = scores / ((5 + lengths) / 6) ** penalty
    # What has not ended is chosen only where nothing has.
    choice = np.where(ended | ~ended.any(1, keepdims=True), scores, -np.inf).argmax(1)
    chosen = tokens[np.arange(count), choice]
    return [row[row > END] for row in chosen]


def _traced(decoder: keras.Model) -> Callable:
    """What follows beginnings: log-probabilities, from memory, sources and beginnings."""
    width = decoder.inputs[0].shape[-1]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, width]),
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, None], tf.int32),
        ]
    )
    def last(memory, source, begun):
        logits = decoder([memory, source, begun], training=False)[:, -1]
        # Padding is no word, and nothing begins anew.
        barred = tf.one_hot([PADDING, BEGIN], logits.shape[-1], on_value=-np.inf, off_value=0.0)
        return tf.nn.log_softmax(logits + tf.reduce_sum(barred, 0))

    return last
