"""The model: a weighted sum of standardized columns; and least squares, its exact solution."""

import keras
import numpy as np


def build(x: np.ndarray) -> keras.Model:
    """A linear model of columns as they are.

    Args:
      x: float32 [rows, columns], the rows to train on. Their means and variances become constants
        of the model, so that gradients of all weights are of one size.

    Returns:
      A model from float32 [batch, columns] to float32 [batch, 1].
    """
    mean, variance = x.mean(0, dtype=np.float64), x.var(0, dtype=np.float64)
    columns = keras.Input([x.shape[1]], name="columns")
    standard = keras.layers.Normalization(
        mean=mean.astype(np.float32), variance=np.maximum(variance, 1e-12).astype(np.float32)
    )(columns)
    return keras.Model(columns, keras.layers.Dense(1, name="sum")(standard), name="linear")


def least_squares(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """What the linear model with the smallest squared error on (x, y) predicts.

    Args:
      x: [rows, columns], and y: [rows], to fit.
      y: targets.
      at: [n, columns], where to predict.

    Returns:
      float64 [n].
    """
    mean, deviation = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)

    def matrix(rows: np.ndarray) -> np.ndarray:
        standard = (rows - mean) / np.maximum(deviation, 1e-6)
        return np.concatenate([standard, np.ones([len(rows), 1])], 1)

    weights, *_ = np.linalg.lstsq(matrix(x), y.astype(np.float64), rcond=None)
    return matrix(at) @ weights


def r_squared(y: np.ndarray, predicted: np.ndarray) -> float:
    """The share of the variance of y [n] that the predictions [n] explain; 1 is all of it."""
    y = y.astype(np.float64)
    spread = float(((y - y.mean()) ** 2).sum())
    return 1.0 - float(((y - predicted) ** 2).sum()) / max(spread, 1e-300)
