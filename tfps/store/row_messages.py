"""Pulls rows of several tables: what one ps is asked for, and what it answers, is one message.

A model of a recommender has tens of tables, and a message of its own for each of them costs more
than its few rows do.
"""

from collections.abc import Mapping

import tensorflow as tf

from tfps.cluster.devices import ps_device
from tfps.store.handles import ServerHandles
from tfps.store.messages import join, separate
from tfps.store.tables import Found, Ids, Table


def pull(
    tables: Mapping[int, Table],
    ids: Mapping[int, Ids],
    handles: ServerHandles,
    seed: tf.Tensor,
    exact: bool = False,
) -> dict[int, Found]:
    """Reads the rows of these ids and sends them to the caller's device.

    Args:
      tables: index of a variable -> its table.
      ids: index of a variable -> the ids that are wanted of it.
      handles: of the step.
      seed: int32 [2], for the codecs.
      exact: whether the rows are sent as they are, whatever the codecs.

    Returns:
      Index of a variable -> what was found.
    """
    wanted = {i: tables[i].wanted(one) for i, one in ids.items()}
    parts: dict[int, list[tuple[int, int]]] = {}
    for i in ids:
        for k, part in enumerate(tables[i].storage.parts):
            parts.setdefault(part.ps, []).append((i, k))
    read: dict[tuple[int, int], tuple[tf.Tensor, tuple]] = {}
    for ps, mine in parts.items():
        asked = [wanted[i][k] for i, k in mine]
        joined = join(asked)
        with tf.device(ps_device(ps)):
            found = [
                tables[i].read(handles, k, one, seed, exact)
                for (i, k), one in zip(mine, separate(joined, asked), strict=True)
            ]
            payloads = [payload for _, payload in found]
            flat = tf.nest.flatten(payloads)
            sent = join(flat)
        payloads = tf.nest.pack_sequence_as(payloads, separate(sent, flat))
        for one, (rows, _), payload in zip(mine, found, payloads, strict=True):
            read[one] = rows, payload
    return {
        i: tables[i].found(one, wanted[i], [read[i, k] for k in range(len(wanted[i]))], exact)
        for i, one in ids.items()
    }
