"""Sampling text from a trained model."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from models.gpt.model import context_of
from models.gpt.tokenizers import Tokenizer
from tfps import errors


def tokens(
    model: keras.Model, prompt: np.ndarray, count: int, temperature: float, seed: int
) -> Iterator[int]:
    """Draws tokens one after another.

    Args:
      model: A model of `model.build`.
      prompt: int32 [n], n >= 1.
      count: number of tokens to draw.
      temperature: 0 takes the likeliest token; 1 samples from the model's distribution.
      seed: seed of the draws.

    Yields:
      The ids of the tokens that follow the prompt.
    """
    context = context_of(model)
    # The window always has the full length, so that the function is traced once. The causal mask
    # hides what follows the last token.
    window = np.zeros([1, context], np.int32)
    run = tf.function(lambda x, i: model(x, training=False)[0, i])
    rng = np.random.default_rng(seed)
    history = list(prompt)
    for _ in range(count):
        tail = history[-context:]
        window[0, : len(tail)] = tail
        logits = run(tf.constant(window), tf.constant(len(tail) - 1)).numpy().astype(np.float64)
        if temperature > 0:
            scaled = (logits - logits.max()) / temperature
            weights = np.exp(scaled)
            drawn = int(rng.choice(len(weights), p=weights / weights.sum()))
        else:
            drawn = int(logits.argmax())
        history.append(drawn)
        yield drawn


def text(
    model: keras.Model,
    tokenizer: Tokenizer,
    prompt: str,
    count: int = 300,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    """The prompt and `count` sampled tokens, as text.

    Raises:
      ConfigError: the prompt is empty.
    """
    start = tokenizer.encode(prompt.encode())
    if not len(start):
        raise errors.ConfigError("--generate is empty; give at least one character to begin with")
    return prompt + tokenizer.decode(list(tokens(model, start, count, temperature, seed)))
