"""What a language model's loss means."""

import math


def perplexity(loss: float) -> float:
    """exp of the mean loss, which is in nats per token."""
    return math.exp(min(loss, 100.0))


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Converts the mean loss in nats per token to bits per byte of the text."""
    return loss / math.log(2) / bytes_per_token
