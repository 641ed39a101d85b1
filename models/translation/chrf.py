"""chrF: how many sequences of characters a translation shares with another one."""

import collections
from collections.abc import Sequence

import numpy as np

_ORDERS = range(1, 7)
_BETA = 2  # Recall counts so many times as much as precision.


def chrf(found: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 of a corpus (Popović, 2015, 2017), from 0 to 100, as sacreBLEU counts it.

    Sequences of 1 to 6 characters are counted, without white space. Precision and recall of each
    length are those of all texts together, and lengths count alike, unless there is none of one.

    Args:
      found: translations, n texts.
      references: what they should be, n texts.
    """
    totals = np.zeros([len(_ORDERS), 3])
    for one, reference in zip(found, references, strict=True):
        totals += [_counts(one, reference, order) for order in _ORDERS]
    used = totals[(totals[:, 0] > 0) & (totals[:, 1] > 0)]
    if not len(used):
        return 0.0
    ours, theirs, shared = used.T
    precision, recall = (shared / ours).mean(), (shared / theirs).mean()
    if not precision + recall:
        return 0.0
    return float(100 * (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall))


def _counts(found: str, reference: str, order: int) -> tuple[int, int, int]:
    """Sequences in the translation, in the reference, and in both."""
    ours, theirs = _sequences(found, order), _sequences(reference, order)
    # Where the reference is too short for a sequence, there is nothing to be found.
    return ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()


def _sequences(text: str, order: int) -> collections.Counter[str]:
    joined = "".join(text.split())
    return collections.Counter(joined[i : i + order] for i in range(len(joined) - order + 1))
