"""Where the operations of a graph are: private names of TensorFlow 2.21."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import backprop

from tfps import _tf_tracing


@contextlib.contextmanager
def gradients_stay(job: str, neutral: Sequence[str]) -> Iterator[None]:
    """A context in which the gradient of an operation is computed where the operation was.

    A tape computes all gradients under the device in scope when they are asked for, which would be
    one device for the whole backward pass. Where a gradient belongs to no single operation (that of
    a function), or TensorFlow does not say to which, it is computed where its inputs are. What puts
    together tensors of several devices (a sum of gradients, a concatenation), and what has no
    inputs, is on the device in scope.

    Args:
      job: begins the names of the devices that are meant, such as "/job:worker".
      neutral: devices that do not draw what has inputs on other devices: the device in scope, and
        the one from which parameters come.
    """
    graph, thread = tf.compat.v1.get_default_graph(), threading.get_ident()

    def device_of(op: tf.Operation) -> str:
        if op.device or op.graph is not graph:
            return op.device
        # Constants have no place of their own.
        inputs = [t.op for t in op.inputs if t.op.type != "Const"]
        places = dict.fromkeys(one.device for one in inputs if one.device.startswith(job))
        if op.type not in _JOINING:
            places = dict.fromkeys(place for place in places if place not in neutral)
        return next(iter(places)) if len(places) == 1 else ""

    def gradient_of(name, attributes, count, inputs, outputs, *rest):
        device = None
        if threading.get_ident() == thread:
            device = _device_of_forward(name, inputs, outputs, graph)
        with tf.device(device) if device else contextlib.nullcontext():
            return backprop._gradient_function(name, attributes, count, inputs, outputs, *rest)

    with _tf_tracing.patching, tf.compat.v1.device(device_of):
        pywrap_tfe.TFE_Py_RegisterGradientFunction(gradient_of)
        try:
            yield
        finally:
            pywrap_tfe.TFE_Py_RegisterGradientFunction(backprop._gradient_function)


_JOINING = ("AddN", "ConcatV2", "Pack")


def _device_of_forward(
    name: str, inputs: Sequence[Any] | None, outputs: Sequence[Any] | None, graph: tf.Graph
) -> str | None:
    """The device of the operation of which a tape wants the gradient.

    Args:
      name: type of the operation.
      inputs, outputs: of the operation; None in the place of what the gradient does not need, and
        in place of all if it needs none.
      graph: to which the operation belongs, if it is one of a graph.
    """

    def is_here(tensor):
        return isinstance(tensor, tf.Tensor) and getattr(tensor, "graph", None) is graph

    for one in filter(is_here, outputs or ()):
        return one.op.device
    for one in filter(is_here, inputs or ()):
        for op in one.consumers():
            if op.type == name and all(
                mine is None or mine is theirs
                for mine, theirs in zip(inputs or (), op.inputs, strict=False)
            ):
                return op.device
    return None


def branches(graph: tf.Graph) -> bool:
    """Whether a graph has loops or conditionals."""
    return any(op.type.removeprefix("Stateless") in _BRANCHING for op in operations(graph))


_BRANCHING = ("While", "If", "Case")


def devices_named(graph: tf.Graph) -> set[str]:
    """The devices that operations of a graph name without a job, such as "GPU:1"."""
    specs = [tf.DeviceSpec.from_string(name) for name in {op.device for op in operations(graph)}]
    return {
        f"{spec.device_type}:{spec.device_index or 0}"
        for spec in specs
        if spec.job is None and spec.device_type in ("CPU", "GPU")
    }


def operations(graph: tf.Graph) -> list[tf.Operation]:
    """The operations of a graph, and those of its branches, loops and functions."""
    graphs = {id(graph): graph}
    todo = [graph]
    while todo:
        for function in todo.pop()._functions.values():
            inside = getattr(function, "graph", None)
            if inside is not None and id(inside) not in graphs:
                graphs[id(inside)] = inside
                todo.append(inside)
    return [op for one in graphs.values() for op in one.get_operations()]
