"""Low-rank approximation."""

import dataclasses
import math

import tensorflow as tf

from tfps import errors
from tfps.compression.base import Codec
from tfps.compression.kernels import hashing

# A column that shrinks by so much when others are taken out of it was made of them.
_DEPENDENT = 1e-5


def _fold(shape: tuple[int, ...]) -> tuple[int, int]:
    # Where the axes part into rows and columns decides the size of the factors.
    cuts = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return min(cuts, key=sum)


def _normalise(column: tf.Tensor) -> tf.Tensor:
    # Scaled first, so that the squares neither overflow nor vanish. Zero stays zero.
    column = tf.math.divide_no_nan(column, tf.reduce_max(tf.abs(column)))
    return tf.math.divide_no_nan(column, tf.norm(column))


def _orthonormalise(matrix: tf.Tensor) -> tf.Tensor:
    """Gram-Schmidt on the columns; dependent ones become zero."""
    basis: list[tf.Tensor] = []
    for column in tf.unstack(matrix, axis=1):
        column = _normalise(column)
        # Once more for what rounding left: "twice is enough" (Giraud et al. 2005).
        for _ in range(2):
            for other in basis:
                column -= tf.reduce_sum(column * other) * other
        column = tf.where(tf.norm(column) > _DEPENDENT, column, tf.zeros_like(column))
        basis.append(_normalise(column))
    return tf.stack(basis, 1)


@dataclasses.dataclass(frozen=True)
class PowerSGD(Codec):
    """Two thin factors whose product approximates the gradient of a matrix.

    Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization" (2019): one step of power iteration, started from
    the factor of the last step. A tensor of more than two dimensions is folded
    into a matrix where that makes the factors smallest. Vectors, and matrices
    no larger than their factors, are sent as they are, in float32.

    Without feedback, a gradient with a non-finite element arrives non-finite,
    and the next one starts the iteration afresh.

    Attributes:
      rank: columns of each factor.
    """

    rank: int = 4

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise errors.ConfigError(
                f"rank={self.rank!r} is not a number of columns; give a whole number of at least 1"
            )

    @property
    def biased(self):
        return True

    @property
    def not_for_weights(self):
        return (
            "it sends an approximation of low rank, which only feedback over many steps completes"
        )

    @property
    def matrices(self):
        return True

    def initial_state(self, shape):
        """(Q: float32 [rank, columns],), or () for what is sent as it is."""
        factors = self._factors(shape)
        return (tf.zeros([factors[2], factors[1]], tf.float32),) if factors else ()

    def encode(self, tensor, state, seed):
        factors = self._factors(tuple(tensor.shape))
        tensor = tf.cast(tensor, tf.float32)
        if factors is None:
            return (tensor,), state
        rows, columns, _ = factors
        matrix = tf.reshape(tensor, [rows, columns])
        p = _orthonormalise(tf.matmul(matrix, tf.transpose(_revive(state[0], seed))))
        # Q lies on its side: XLA's product of a transposed wide matrix with a thin
        # one takes several times longer than that of the thin one with the wide.
        q = tf.matmul(p, matrix, transpose_a=True)
        return (p, q), (q,)

    def decode(self, payload, shape, dtype):
        if len(payload) == 1:
            return tf.cast(tf.reshape(payload[0], shape), dtype)
        p, q = payload
        return tf.cast(tf.reshape(tf.matmul(p, q), shape), dtype)

    def payload_bytes(self, shape, dtype):
        del dtype
        factors = self._factors(shape)
        if factors is None:
            return math.prod(shape) * 4
        rows, columns, rank = factors
        return (rows + columns) * rank * 4

    def _factors(self, shape):
        # (rows, columns, rank), or None where factors would be no smaller.
        if len(shape) < 2:
            return None
        rows, columns = _fold(shape)
        rank = min(self.rank, rows, columns)
        return (rows, columns, rank) if (rows + columns) * rank < rows * columns else None


def _revive(q: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    # A zero row would stay zero for ever: at the start, and wherever the
    # gradient has had too low a rank, directions are drawn anew.
    fresh = hashing.uniform(seed, tuple(q.shape)) - 0.5
    largest = tf.reduce_max(tf.abs(q), 1, keepdims=True)
    alive = (largest > 0) & tf.math.is_finite(largest)
    scaled = tf.math.divide_no_nan(q, largest)
    return tf.where(alive, scaled, fresh)
