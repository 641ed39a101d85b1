"""What a dataset's graph says of reading it again somewhere else: names of TensorFlow 2.21."""

import tensorflow as tf
from tensorflow.core.framework import node_def_pb2

from tfps._tf_shuffles import graph_of, tree_of

_CACHES = ("CacheDataset", "CacheDatasetV2")


def cautions(dataset: tf.data.Dataset) -> list[str]:
    """What about a dataset may go wrong where a lost process's work is done again, in sentences.

    Args:
      dataset: on whatever device. A dataset whose graph cannot be had is not judged.
    """
    found = []
    # In the graph there is the number that this machine has taken.
    if any(map(_follows_cores, tree_of(dataset))):
        found.append(
            "interleave has no cycle_length, and then takes as many as the machine that reads has "
            "cores: on another machine the dataset has another order; give it one"
        )
    if (graph := graph_of(dataset)) is None:
        return found
    nodes = {node.name: node for node in graph.node}
    files = [_file(node, nodes) for node in graph.node if node.op in _CACHES]
    for file in filter(None, files):
        found.append(
            f"cache({file!r}) leaves {file}_0.lockfile behind when a process that writes the cache "
            "is killed, and no later one can read the dataset before that file is deleted; read "
            "the dataset once before training, or cache in memory"
        )
    return found


def _follows_cores(dataset: tf.data.Dataset) -> bool:
    """Whether a dataset is an interleave whose cycle length is left to the machine."""
    cycle = getattr(dataset, "_cycle_length", None)
    return cycle is not None and int(cycle) == tf.data.AUTOTUNE


def _file(node: node_def_pb2.NodeDef, nodes: dict[str, node_def_pb2.NodeDef]) -> str:
    """The file of a cache; empty for one in memory."""
    constant = nodes.get(node.input[1].partition(":")[0])
    if constant is None or not constant.attr["value"].tensor.string_val:
        return ""
    return constant.attr["value"].tensor.string_val[0].decode("utf-8", "replace")
