"""Files of word vectors: word2vec's own format, and TensorBoard's projector."""

import os

import numpy as np
from tensorboard.plugins import projector

_SHOWN = 10_000  # Words in the projector, which gets slow with more.


def save(path: str, words: list[str], vectors: np.ndarray) -> None:
    """Writes vectors in the text format of word2vec, which other programs read.

    Args:
      path: of the file.
      words: the vocabulary.
      vectors: float32 [vocabulary, width].
    """
    with open(path, "w", encoding="utf-8") as f:
        f.write(f"{len(words)} {vectors.shape[1]}\n")
        for word, row in zip(words, vectors, strict=True):
            f.write(f"{word} {_joined(row, ' ')}\n")


def project(log_dir: str, words: list[str], vectors: np.ndarray) -> None:
    """Shows the most frequent words in TensorBoard's projector, which finds neighbours.

    Args:
      log_dir: TensorBoard's folder.
      words: the vocabulary, the most frequent first.
      vectors: float32 [vocabulary, width].
    """
    os.makedirs(log_dir, exist_ok=True)
    for name, lines in {
        "words.tsv": words[:_SHOWN],
        "vectors.tsv": [_joined(row, "\t") for row in vectors[:_SHOWN]],
    }.items():
        with open(os.path.join(log_dir, name), "w", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")
    config = projector.ProjectorConfig()
    config.embeddings.add(
        tensor_name="word vectors", tensor_path="vectors.tsv", metadata_path="words.tsv"
    )
    projector.visualize_embeddings(log_dir, config)


def vectors_path(model_path: str) -> str:
    """The path of the vectors of a saved model: the model's, with the suffix .vec."""
    return os.path.splitext(model_path)[0] + ".vec"


def _joined(row: np.ndarray, separator: str) -> str:
    return separator.join(f"{value:.6g}" for value in row)
