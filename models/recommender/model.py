"""The networks. All have an embedding for each column of ids, whose tables grow with the ids."""

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

import tfps
from models import tables
from models.recommender.interactions import SIDES, Columns

Tensor = keras.KerasTensor
Numbers = dict[str, Tensor]  # Side -> standardized numbers [batch, columns], where there are any.


def build(
    kind: str, columns: Columns, examples: dict[str, np.ndarray], width: int, seed: int
) -> keras.Model:
    """Makes a model of what a user likes.

    Args:
      kind: a name of `KINDS`.
      columns: of the inputs.
      examples: inputs to train on, which give the means and variances of numbers, and how many ids
        are to be expected.
      width: elements of an embedding.
      seed: of the embeddings' first rows. Keras's own seed decides about all other weights.

    Returns:
      A model from a dictionary as of `Columns.inputs` to float32 logits [batch, 1].
    """
    make, extra = KINDS[kind]
    ids = {name: keras.Input([], dtype="int64", name=name) for name in columns.ids}
    rows = {}
    for i, (name, one) in enumerate(ids.items()):
        expected = len(np.unique(examples[name]))
        rows[name] = tfps.layers.HashEmbedding(
            width + extra, expected=expected, seed=1000 * seed + i, name=f"{name}_rows"
        )(one)
    inputs, numbers = dict(ids), {}
    for name in [f"{side}_numbers" for side in SIDES if columns.numbers[side]]:
        known = examples[name]
        inputs[name] = keras.Input([known.shape[1]], name=name)
        mean, deviation = (part.astype(np.float32) for part in tables.moments(known))
        numbers[name.partition("_")[0]] = layers.Normalization(
            mean=mean, variance=deviation**2, name=f"{name}_standard"
        )(inputs[name])
    return keras.Model(inputs, make(rows, numbers, width), name=kind)


def two_tower(rows: dict[str, Tensor], numbers: Numbers, width: int) -> Tensor:
    """Two towers (Covington et al., 2016; Yi et al., 2019): a user's and an item's vector, and dot.

    The items' vectors can be computed once, and searched for those next to a user's.
    """
    vectors, biases = [], []
    for side in SIDES:
        about = [row for name, row in rows.items() if name.startswith(side)]
        x = _joined([*about, *([numbers[side]] if side in numbers else [])])
        hidden = layers.Dense(2 * width, activation="relu", name=f"{side}_hidden")(x)
        vectors.append(layers.Dense(width, name=f"{side}_vector")(hidden))
        biases.append(layers.Dense(1, name=f"{side}_bias")(hidden))
    return layers.Add()([layers.Dot(1)(vectors), *biases])


def dlrm(rows: dict[str, Tensor], numbers: Numbers, width: int) -> Tensor:
    """DLRM (Naumov et al., 2019): products of all pairs of vectors, and a network on top."""
    vectors = list(rows.values())
    bottom = []
    if numbers:
        x = layers.Dense(2 * width, activation="relu", name="bottom")(_joined(numbers.values()))
        bottom = [layers.Dense(width, activation="relu", name="bottom_vector")(x)]
    pairs = _pairs([*vectors, *bottom])
    x = _joined([*vectors, *bottom, pairs])
    for i, units in enumerate((4 * width, 2 * width)):
        x = layers.Dense(units, activation="relu", name=f"top{i}")(x)
    return layers.Dense(1, name="logit")(x)


def factorization_machine(rows: dict[str, Tensor], numbers: Numbers, width: int) -> Tensor:
    """A factorization machine (Rendle, 2010): weights of ids, and products of pairs of vectors.

    The numbers of a side have a weight each, and one vector together. The last element of a row is
    the weight of its id.
    """
    vectors = [row[:, :width] for row in rows.values()]
    weights = [row[:, width:] for row in rows.values()]
    for side, x in numbers.items():
        vectors.append(layers.Dense(width, use_bias=False, name=f"{side}_vector")(x))
        weights.append(layers.Dense(1, use_bias=False, name=f"{side}_weight")(x))
    products = ops.sum(_pairs(vectors), axis=1, keepdims=True)
    bias = layers.Dense(1, kernel_initializer="zeros", name="bias")(ops.zeros_like(products))
    return layers.Add()([products, bias, *weights])


# Name -> (function, elements of a row beyond the width).
KINDS: dict[str, tuple[Callable[[dict[str, Tensor], Numbers, int], Tensor], int]] = {
    "two_tower": (two_tower, 0),
    "dlrm": (dlrm, 0),
    "fm": (factorization_machine, 1),
}


def auc(liked: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve, exactly: how often what is liked has the higher score.

    Args:
      liked: [n], 1 or 0.
      scores: [n]; of equal scores, half count.

    Returns:
      The area; NaN if all or none are liked.
    """
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positive = liked > 0
    count = int(positive.sum())
    above = float(ranks[positive].sum()) - count * (count + 1) / 2
    pairs = count * (len(liked) - count)
    return above / pairs if pairs else math.nan


def _joined(parts) -> Tensor:
    parts = list(parts)
    return layers.Concatenate()(parts) if len(parts) > 1 else parts[0]


def _pairs(vectors: list[Tensor]) -> Tensor:
    """Dot products of all pairs of vectors [batch, width]: [batch, pairs]."""
    count = len(vectors)
    together = ops.stack(vectors, axis=1)
    products = ops.matmul(together, ops.transpose(together, [0, 2, 1]))
    above = [i * count + j for i in range(count) for j in range(i + 1, count)]
    return ops.take(ops.reshape(products, [-1, count * count]), above, axis=1)
