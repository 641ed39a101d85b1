"""Low-rank approximation."""

import dataclasses
import math

import tensorflow as tf

from tfps import errors
from tfps.compression.base import Codec, DType, Payload, Shape, State
from tfps.compression.kernels import hashing

# A column that shrinks by this factor when the columns before it are projected out depends on them.
_DEPENDENT = 1e-5


def _fold(shape: tuple[int, ...]) -> tuple[int, int]:
    # (rows, columns). Where the axes part into rows and columns decides the size of the factors.
    cuts = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
    return min(cuts, key=sum)


def _normalise(column: tf.Tensor) -> tf.Tensor:
    # Scaling first keeps the squares from overflowing and from vanishing. Zero stays zero.
    column = tf.math.divide_no_nan(column, tf.reduce_max(tf.abs(column)))
    return tf.math.divide_no_nan(column, tf.norm(column))


def _orthonormalise(matrix: tf.Tensor) -> tf.Tensor:
    """Runs Gram-Schmidt on the columns; dependent columns become zero."""
    basis: list[tf.Tensor] = []
    for column in tf.unstack(matrix, axis=1):
        column = _normalise(column)
        # A second pass removes what rounding left: "twice is enough" (Giraud et al. 2005).
        for _ in range(2):
            for other in basis:
                column -= tf.reduce_sum(column * other) * other
        column = tf.where(tf.norm(column) > _DEPENDENT, column, tf.zeros_like(column))
        basis.append(_normalise(column))
    return tf.stack(basis, 1)


@dataclasses.dataclass(frozen=True)
class PowerSGD(Codec):
    """Two thin factors whose product approximates the gradient of a matrix.

    Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
    Optimization" (2019): each step takes one step of power iteration, which starts from the factor
    of the last step. A tensor of more than two dimensions is folded into a matrix at the axis that
    makes the factors smallest. Vectors, and matrices no larger than their factors, are sent as
    they are, in float32.

    Without feedback, a gradient with a non-finite element arrives non-finite, and the next
    gradient starts the iteration afresh.

    Attributes:
      rank: number of columns of each factor.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise errors.ConfigError(
                f"rank={self.rank!r} is not a number of columns; give a whole number of at least 1"
            )

    @property
    def biased(self) -> bool:
        return True

    @property
    def not_for_weights(self) -> str:
        return (
            "it sends an approximation of low rank, which only feedback over many steps completes"
        )

    @property
    def matrices(self) -> bool:
        return True

    def initial_state(self, shape: Shape) -> State:
        """(Q: float32 [rank, columns],), or () for a tensor that is sent as it is."""
        factors = self._factors(shape)
        return (tf.zeros([factors[2], factors[1]], tf.float32),) if factors else ()

    def encode(self, tensor: tf.Tensor, state: State, seed: tf.Tensor) -> tuple[Payload, State]:
        factors = self._factors(tuple(tensor.shape))
        tensor = tf.cast(tensor, tf.float32)
        if factors is None:
            return (tensor,), state
        rows, columns, _ = factors
        matrix = tf.reshape(tensor, [rows, columns])
        p = _orthonormalise(tf.matmul(matrix, tf.transpose(_revive(state[0], seed))))
        # Q is stored transposed: XLA takes several times longer to multiply a transposed wide
        # matrix by a thin one than to multiply the thin matrix by the wide one.
        q = tf.matmul(p, matrix, transpose_a=True)
        return (p, q), (q,)

    def decode(self, payload: Payload, shape: Shape, dtype: DType) -> tf.Tensor:
        if len(payload) == 1:
            return tf.cast(tf.reshape(payload[0], shape), dtype)
        p, q = payload
        return tf.cast(tf.reshape(tf.matmul(p, q), shape), dtype)

    def payload_bytes(self, shape: Shape, dtype: DType) -> int:
        del dtype
        factors = self._factors(shape)
        if factors is None:
            return math.prod(shape) * 4
        rows, columns, rank = factors
        return (rows + columns) * rank * 4

    def _factors(self, shape: Shape) -> tuple[int, int, int] | None:
        # (rows, columns, rank), or None if factors would be no smaller than the tensor.
        if len(shape) < 2:
            return None
        rows, columns = _fold(shape)
        rank = min(self.rank, rows, columns)
        return (rows, columns, rank) if (rows + columns) * rank < rows * columns else None


def _revive(q: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    # A zero row would stay zero for ever. So directions are drawn anew at the start, and where the
    # gradient's rank was lower than the codec's.
    fresh = hashing.uniform(seed, tuple(q.shape)) - 0.5
    largest = tf.reduce_max(tf.abs(q), 1, keepdims=True)
    alive = (largest > 0) & tf.math.is_finite(largest)
    scaled = tf.math.divide_no_nan(q, largest)
    return tf.where(alive, scaled, fresh)
