"""Datasets whose shuffles begin anew: private names of TensorFlow 2.21."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2, tensor_pb2
from tensorflow.python.data.ops import dataset_ops

from tfps import _tf_data

# Tensors of a dataset that are copied with it (bytes); above, a copy would cost too much memory.
_MOST_BYTES = 256 << 20

# Operation -> at which of its inputs its two seeds and its seed generator are.
_DRAWING = {
    "ShuffleDatasetV3": (2, 3, 4),
    "ShuffleAndRepeatDatasetV2": (2, 3, 5),
    "RandomDatasetV2": (0, 1, 2),
}
# Without a generator; these draw what follows from their seeds in every pass.
_FIXED = {"RandomDataset": (0, 1)}
_CACHES = "CacheDataset", "CacheDatasetV2"

# Classes of datasets that make iterators over their inputs in the course of a pass.
_DRAWING_LATER = {"_RepeatDataset", "_ConcatenateDataset", "CacheDataset"}

_numbers = itertools.count()


@dataclasses.dataclass
class _Generator:
    """A generator of seeds, from which each iterator over a shuffle draws one.

    Attributes:
      handles: in the graph of the dataset, each the value of a constant.
      seeds: of the generator.
      reshuffles: false if it draws the same seed always.
      draws: how often it is drawn from in a pass; 0 if only the first pass is shuffled by it,
        because a cache has the order of that pass.
    """

    handles: list[tensor_pb2.TensorProto]
    seeds: tuple[int, int]
    reshuffles: bool
    draws: int


class Shuffled:
    """A dataset that shuffles, as it is in any pass.

    Each iterator draws from the seed generators of its dataset, which TensorFlow never sets back,
    and a copy of a dataset shares them. So the dataset is copied with generators of its own, from
    which it has been drawn as often as in the passes before. What has no seed is given one.

    Attributes:
      begins_anew: whether `at` can be called: the dataset draws something, and can be copied.
      why_not: what keeps the order of a pass from being repeated; empty if it can be.
      name: of the dataset's first generator, which datasets that are made from this one share; of
        no other dataset's.
    """

    def __init__(self, dataset: tf.data.Dataset, seed: int):
        """Looks at the dataset.

        Args:
          dataset: on this process's device.
          seed: of shuffles that have no seed.
        """
        self._dataset, self._seed = dataset, seed
        self.begins_anew, self.why_not, self.name = False, "", str(next(_numbers))
        try:
            graph = None if _bytes_in(dataset) > _MOST_BYTES else _graph_of(dataset)
            why_not = f"it holds more than {_MOST_BYTES >> 20} MiB of tensors"
        except (tf.errors.OpError, ValueError) as e:
            graph, why_not = None, f"it cannot be copied: {str(e).splitlines()[0]}"
        if graph is None:
            self.why_not = why_not if _shuffles(dataset) else ""
            return
        nodes = {node.name: node for node in graph.node}
        for node in reversed(graph.node):
            if node.op in _DRAWING:
                self.name = _name(_inputs(node, nodes)[2])
        self.begins_anew = any(node.op in {**_DRAWING, **_FIXED} for node in graph.node)
        if any(_draws_without_seed(function.node_def) for function in graph.library.function):
            self.why_not = "a function of it shuffles without a seed"
        functions = [node for one in graph.library.function for node in one.node_def]
        is_free = dataset.options().deterministic is False
        if is_free or any(n.attr["deterministic"].s == b"false" for n in [*graph.node, *functions]):
            self.why_not = "it has deterministic=False"

    def at(self, turn: int) -> tf.data.Dataset:
        """The dataset as it is in a pass, for one iterator.

        Args:
          turn: number of the pass.
        """
        graph, sources = _graph_of(self._dataset), []
        with tf.device(self._dataset._variant_tensor.device):
            for generator in _generators(graph, self._seed, turn):
                sources.append(_drawn(generator, turn * generator.draws))
                for constant in generator.handles:
                    constant.CopyFrom(_handle_of(sources[-1]))
            variant = tf.raw_ops.DatasetFromGraph(graph_def=graph.SerializeToString())
            copy = _Copy(variant, self._dataset, sources)
            return copy.with_options(self._dataset.options())


class _Copy(dataset_ops._VariantDataset):
    """A copy of a dataset, which holds what it needs of others.

    A seed generator can be found as long as the dataset that has made it lives, and a function of
    the program's can be called as long as the program's dataset does.
    """

    def __init__(self, variant: tf.Tensor, of: tf.data.Dataset, sources: list[tf.data.Dataset]):
        super().__init__(variant, of.element_spec)
        self._held = of, sources


def draws_within_a_pass(dataset: tf.data.Dataset) -> bool:
    """Whether a pass may draw more than one order from a generator of seeds, or none.

    That depends on how far the pass is read, so it cannot be repeated by drawing alone.
    """
    return any(
        type(one).__name__ in _DRAWING_LATER and any(map(_shuffles_itself, tree_of(one)))
        for one in tree_of(dataset)
    )


def graph_of(dataset: tf.data.Dataset) -> graph_pb2.GraphDef | None:
    """The graph of a dataset; None if it cannot be copied, or has too much memory for that."""
    try:
        return None if _bytes_in(dataset) > _MOST_BYTES else _graph_of(dataset)
    except (tf.errors.OpError, ValueError):
        return None


def _graph_of(dataset: tf.data.Dataset) -> graph_pb2.GraphDef:
    with tf.device(dataset._variant_tensor.device):
        text = tf.raw_ops.DatasetToGraphV2(
            input_dataset=dataset._variant_tensor,
            external_state_policy=1,  # Tables and variables are shared with the copy.
            strip_device_assignment=True,
        )
    return graph_pb2.GraphDef.FromString(text.numpy())


def _generators(graph: graph_pb2.GraphDef, seed: int, turn: int) -> list[_Generator]:
    """The seed generators of a graph; seeds that are missing are put into the graph."""
    nodes = {node.name: node for node in graph.node}
    cached = _above_caches(graph, nodes)
    found: dict[str, _Generator] = {}
    for k, node in enumerate(graph.node):
        if node.op in _FIXED:
            places = _inputs(node, nodes)
            if not any(_int(place) for place in places):
                for place, value in zip(places, _seeds(seed, k, turn), strict=True):
                    place.int64_val[:] = [value]
        if node.op not in _DRAWING:
            continue
        first, second, handle = _inputs(node, nodes)
        name = _name(handle)
        if name not in found:
            seeds = _int(first), _int(second)
            attribute = "rerandomize" if node.op == "RandomDatasetV2" else "reshuffle"
            reshuffles = node.attr[f"{attribute}_each_iteration"].b
            seeds = seeds if any(seeds) else _seeds(seed, len(found))
            found[name] = _Generator([], seeds, reshuffles, 0)
        found[name].handles.append(handle)
        found[name].draws += node.name not in cached
    return list(found.values())


def _inputs(
    node: node_def_pb2.NodeDef, nodes: dict[str, node_def_pb2.NodeDef]
) -> list[tensor_pb2.TensorProto]:
    """The seeds of an operation that draws, and its generator's handle if it has one."""
    places = _DRAWING.get(node.op) or _FIXED[node.op]
    return [nodes[node.input[i]].attr["value"].tensor for i in places]


def _name(handle: tensor_pb2.TensorProto) -> str:
    return handle.resource_handle_val[0].name


def _above_caches(graph: graph_pb2.GraphDef, nodes: dict[str, node_def_pb2.NodeDef]) -> set[str]:
    """The nodes from which a cache takes what it keeps."""
    found: set[str] = set()
    todo = [name for node in graph.node if node.op in _CACHES for name in node.input]
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo += nodes[name].input
    return found


def _drawn(generator: _Generator, count: int) -> tf.data.Dataset:
    """A dataset that has a new seed generator from which was drawn so many times."""
    one = tf.data.Dataset.range(1)
    variant = tf.raw_ops.ShuffleDatasetV3(
        input_dataset=one._variant_tensor,
        buffer_size=1,
        seed=generator.seeds[0],
        seed2=generator.seeds[1],
        seed_generator=tf.raw_ops.DummySeedGenerator(),
        output_types=[tf.int64],
        output_shapes=[[]],
        reshuffle_each_iteration=generator.reshuffles,
    )
    dataset = dataset_ops._VariantDataset(variant, one.element_spec)
    if count and generator.reshuffles:
        # All in one call, whose end is no error.
        drawing = iter(_tf_data.without_tuning(dataset.repeat(count).skip(count)))
        assert not drawing.get_next_as_optional().has_value()
    return dataset


def _handle_of(dataset: tf.data.Dataset) -> tensor_pb2.TensorProto:
    """The seed generator of what `_drawn` returns."""
    nodes = {node.name: node for node in _graph_of(dataset).node}
    return next(_inputs(node, nodes)[2] for node in nodes.values() if node.op in _DRAWING)


def _seeds(*numbers: int) -> tuple[int, int]:
    first, second = np.random.SeedSequence(numbers).generate_state(2)
    return int(first), int(second) or 1


def _int(tensor: tensor_pb2.TensorProto) -> int:
    return int(tf.make_ndarray(tensor))


def _draws_without_seed(nodes: Sequence[node_def_pb2.NodeDef]) -> bool:
    """Whether a function makes a dataset that draws what nothing determines."""
    constants = {n.name: n.attr["value"].tensor for n in nodes if n.op == "Const"}

    def is_zero(name: str) -> bool:
        tensor = constants.get(name.split(":")[0])
        return tensor is not None and not _int(tensor)

    ops = {op: places[:2] for op, places in {**_DRAWING, **_FIXED}.items()}
    drawing = [node for node in nodes if node.op in ops]
    return any(all(is_zero(node.input[i]) for i in ops[node.op]) for node in drawing)


def tree_of(dataset: tf.data.Dataset) -> Iterator[tf.data.Dataset]:
    yield dataset
    for one in dataset._inputs():
        yield from tree_of(one)


def _bytes_in(dataset: tf.data.Dataset) -> int:
    """The size of the tensors that a dataset is made from (bytes)."""
    tensors = [t for one in tree_of(dataset) for t in getattr(one, "_tensors", ())]
    return sum(t.dtype.size * (t.shape.num_elements() or 0) for t in tensors)


def _shuffles(dataset: tf.data.Dataset) -> bool:
    return any(map(_shuffles_itself, tree_of(dataset)))


def _shuffles_itself(dataset: tf.data.Dataset) -> bool:
    return hasattr(dataset, "_reshuffle_each_iteration")
