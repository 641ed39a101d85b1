"""The model: a weighted sum of standardized columns; and least squares, its exact solution."""

import keras
import numpy as np

from models import tables


def build(x: np.ndarray, y: np.ndarray) -> keras.Model:
    """A linear model of columns as they are.

    Args:
      x: float32 [rows, columns], the rows to train on. Their means and deviations become constants
        of the model, so that gradients of all weights are of one size.
      y: float32 [rows], the targets, of which the same holds: weights are of one size, whatever the
        unit of the target.

    Returns:
      A model from float32 [batch, columns] to float32 [batch, 1]. It begins with the mean target,
      and goes on with it where nothing can be learned, as of a column of equal values.
    """
    (mean, deviation), ((offset,), (scale,)) = tables.moments(x), tables.moments(y[:, None])
    columns = keras.Input([x.shape[1]], name="columns")
    standard = keras.layers.Normalization(
        mean=mean.astype(np.float32), variance=(deviation**2).astype(np.float32)
    )(columns)
    total = keras.layers.Dense(1, kernel_initializer="zeros", name="sum")(standard)
    target = keras.layers.Rescaling(float(scale), float(offset), name="target")(total)
    return keras.Model(columns, target, name="linear")


def compiled(x: np.ndarray, y: np.ndarray, rate: object, steps_per_execution: int) -> keras.Model:
    """The model, compiled. Its loss is the squared error divided by the variance of the targets.

    Gradients would be as large as that variance, or as small, and Adam's second moments as its
    square. The squared error itself is a metric.

    Args:
      x: as in `build`.
      y: as in `build`.
      rate: the learning rate, or a schedule of it.
      steps_per_execution: as in `keras.Model.compile`.
    """
    model = build(x, y)
    _, (deviation,) = tables.moments(y[:, None])
    model.compile(
        keras.optimizers.Adam(rate),
        "mse",
        loss_weights=float(deviation**-2),
        metrics=[keras.metrics.MeanSquaredError(name="squared_error")],
        steps_per_execution=steps_per_execution,
    )
    return model


def least_squares(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """What the linear model with the smallest squared error on (x, y) predicts.

    Args:
      x: [rows, columns], and y: [rows], to fit.
      y: targets.
      at: [n, columns], where to predict.

    Returns:
      float64 [n].
    """
    mean, deviation = tables.moments(x)

    def matrix(rows: np.ndarray) -> np.ndarray:
        standard = (rows - mean) / deviation
        return np.concatenate([standard, np.ones([len(rows), 1])], 1)

    weights, *_ = np.linalg.lstsq(matrix(x), y.astype(np.float64), rcond=None)
    return matrix(at) @ weights


def r_squared(y: np.ndarray, predicted: np.ndarray) -> float:
    """The share of the variance of y [n] that the predictions [n] explain; 1 is all of it."""
    y = y.astype(np.float64)
    spread = float(((y - y.mean()) ** 2).sum())
    return 1.0 - float(((y - predicted) ** 2).sum()) / max(spread, 1e-300)
