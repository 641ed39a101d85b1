"""BERT's word pieces: a vocabulary, and text to the ids of its pieces."""

import os

import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.tools.wordpiece_vocab import bert_vocab_from_dataset

import tfps

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

_LOWER_CASE = {"lower_case": True}  # As of BERT's models whose names say "uncased".


def learn(texts: tf.data.Dataset, size: int) -> list[str]:
    """Learns a vocabulary of word pieces (Schuster and Nakajima, 2012).

    Args:
      texts: strings [n], batches of texts to learn from. The learner is slow: 4 MB are enough.
      size: most pieces to learn; the learner may end with some fewer or more.

    Returns:
      The pieces, the special ones first. A piece's id is its index.
    """
    return bert_vocab_from_dataset.bert_vocab_from_dataset(
        texts, size, SPECIAL, _LOWER_CASE, {"num_iterations": 3}
    )


def tokenizer(pieces: list[str]) -> tf_text.FastBertTokenizer:
    """A tokenizer from text to int32 ids, without case and accents.

    The tokenizer has no lookup table, which could not go to another task of a cluster.

    Args:
      pieces: the vocabulary.
    """
    return tf_text.FastBertTokenizer(
        pieces, token_out_type=tf.int32, lower_case_nfd_strip_accents=True
    )


def save(pieces: list[str], model_path: str) -> None:
    """Writes the vocabulary beside a saved model, one piece on each line, as BERT's `vocab.txt`."""
    with open(path_of(model_path), "w", encoding="utf-8", newline="") as f:
        f.writelines(f"{piece}\n" for piece in pieces)


def load(model_path: str, size: int) -> list[str]:
    """Reads the vocabulary beside a saved model.

    Args:
      model_path: of the model.
      size: number of token ids that the model has.

    Raises:
      DataError: the vocabulary is missing, or is that of another model.
    """
    path = path_of(model_path)
    try:
        with open(path, encoding="utf-8", newline="") as f:
            pieces = parse(f.read())
    except OSError as e:
        raise tfps.DataError(
            f"{model_path}: its vocabulary {path} cannot be read ({e.strerror}); copy it beside "
            "the model"
        ) from e
    if len(pieces) != size:
        raise tfps.DataError(
            f"{path} has {len(pieces)} pieces, but {model_path} has {size} tokens; they are not of "
            "one training"
        )
    return pieces


def parse(content: str) -> list[str]:
    """The pieces in the content of a `vocab.txt`."""
    return content.removesuffix("\n").split("\n")


def path_of(model_path: str) -> str:
    """The path of a saved model's vocabulary, which lies beside the model."""
    return os.path.splitext(model_path)[0] + ".vocab.txt"
