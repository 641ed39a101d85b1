"""Graphs that the chief calls on workers with one message each."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfps import _tf, _tf_copies, _tf_functions, _tf_resources, errors
from tfps.cluster import table_copies
from tfps.cluster.byte_row import ByteRow


def _made_digits(cpu: str | None) -> list[tf.Tensor]:
    """Makes the tensors of all bytes, uint8 scalars, on a task, or in this process."""
    row = _tf_functions.on_chief(np.arange(256, dtype=np.uint8), tf.uint8)
    if cpu is not None:
        (row,) = _tf_copies.copied([row], cpu)
    with tf.device(cpu):
        return tf.unstack(row)


_digits = _tf_copies.Residents(_made_digits)


class RemoteFunction:
    """A graph that is called on workers, with tensors that stay where they are, and numbers.

    Under a worker's device, TensorFlow makes each new Python number a tensor on the worker, by a
    message for which the interpreter waits with its lock held; and it compares every argument with
    the function's signature in each call. Here the tensors are passed on as they come, and numbers
    cross without messages of their own: the row of their bytes is put together in the graph, from
    the tensors of single bytes. There are 256 of these, and each worker has them.

    A worker runs one call of a function at a time. (TensorFlow refuses to copy a tensor to a task
    twice at once.)
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *specs: Any,
        numbers: Mapping[str, tf.TensorSpec] | None = None,
    ):
        """Traces `function(*specs, **numbers)` once, for all workers.

        Args:
          function: what the graph does. Each number is a keyword argument of it.
          *specs: the form of the positional arguments: nested `tf.TypeSpec`s, or tensors (handles,
            for example) and `tf.data` iterators that stand for their specs. None stands for None.
          numbers: name -> spec of each number, a scalar of an integer, float or bool dtype.

        Raises:
          ConfigError: a leaf of `specs` is no spec, tensor or None, or the function returns a
            handle to a resource.
        """
        # Nothing of this is kept: an iterator that stands for its spec would live on its worker.
        flat_specs = tf.nest.flatten(specs, expand_composites=True)
        self._name = getattr(function, "__name__", type(function).__name__)
        self._numbers = dict(numbers or {})
        self._row = ByteRow(list(self._numbers.values())) if self._numbers else None
        self._to_python = {name: _to_python(spec) for name, spec in self._numbers.items()}

        def call(*inputs: tf.Tensor) -> Any:
            leaves, given = self._unpacked(list(inputs), flat_specs)
            args = tf.nest.pack_sequence_as(specs, leaves, expand_composites=True)
            return function(*args, **given)

        # TensorFlow's errors name it.
        call.__name__ = self._name
        inputs = [_input(s) for s in flat_specs if s is not None]
        digits = [] if self._row is None else [tf.TensorSpec([], tf.uint8)] * self._row.used
        # The graph is for every worker, whatever device is in scope.
        with tf.device(None), _tf_resources.tables_of_chief():
            graph = tf.function(call, autograph=False).get_concrete_function(*digits, *inputs)
        if not _tf_functions.nothing_recorded(graph):
            raise errors.ConfigError(
                f"{call.__name__} returns a handle to a resource; let it return tensors, and make "
                "resources where they are to stay"
            )
        table_copies.use_copies(graph)
        self._graph, self._flat = graph, _tf_functions.FlatFunction(graph)
        self._dtypes = [spec.dtype for spec in inputs]

    @property
    def structured_outputs(self) -> Any:
        """What the function returns, with a `tf.TensorSpec` or symbolic tensor for each tensor."""
        return self._graph.structured_outputs

    @property
    def graph(self) -> tf.Graph:
        """The graph that workers run."""
        return self._graph.graph

    def __call__(self, *args: Any, **numbers: Any) -> Any:
        """Runs the graph on the device in scope, a worker's.

        Args:
          *args: as in the constructor's `specs`, tensors for specs. A tensor on another task is
            copied to the worker, except for handles.
          **numbers: a Python or NumPy number for each of the constructor's `numbers`.

        Returns:
          What the function returns; its tensors are on the worker.

        Raises:
          ConfigError: other tensors or numbers are given than the graph has inputs.
          TypeError: a number has a fraction where an integer is needed.
          OverflowError: an integer is out of its dtype's range.
          tf.errors.OpError: the graph failed.
        """
        inputs = [x for x in tf.nest.flatten(args, expand_composites=True) if x is not None]
        if len(inputs) != len(self._dtypes):
            raise errors.ConfigError(
                f"{self._name} was given {len(inputs)} tensors and takes {len(self._dtypes)}; give "
                "it arguments of the form that it was traced for"
            )
        for i, x in enumerate(inputs):
            if type(x) is not _tf.EagerTensor:
                inputs[i] = _tf_functions.on_chief(x, self._dtypes[i])
        return self._flat.packed(self._flat([*self._digits(numbers), *inputs]))

    def _digits(self, numbers: dict[str, Any]) -> list[tf.Tensor]:
        """Returns the tensors of the bytes of all numbers."""
        if numbers.keys() != self._numbers.keys():
            raise errors.ConfigError(
                f"{self._name} was given the numbers {sorted(numbers)} and takes "
                f"{sorted(self._numbers)}; give it each of these as a keyword argument"
            )
        if self._row is None:
            return []
        values = [convert(numbers[name]) for name, convert in self._to_python.items()]
        row = self._row.pack_numpy(values)[: self._row.used]
        task = _tf_copies.task_in_scope()
        digits = _made_digits(None) if task is None else _digits.on(task)
        return [digits[b] for b in row.tobytes()]

    def _unpacked(self, inputs: list[tf.Tensor], flat_specs: list[Any]) -> tuple[list, dict]:
        """The leaves of the arguments, and the numbers by name, of the inputs of the graph.

        Args:
          inputs: the digits, and then the tensors of the arguments.
          flat_specs: of the arguments; None for what is missing.
        """
        numbers, used = {}, 0
        if self._row is not None:
            used = self._row.used
            # Numbers are wanted on the CPU, also by a worker that has a GPU.
            with tf.device("/device:CPU:0"):
                values = self._row.unpack(tf.stack(inputs[:used]))
                numbers = dict(zip(self._numbers, values, strict=True))
        tensors = iter(inputs[used:])
        return [None if spec is None else next(tensors) for spec in flat_specs], numbers


def _to_python(spec: tf.TensorSpec) -> Callable[[Any], Any]:
    """Returns the conversion for a number of this spec: it refuses fractions for integers."""
    if spec.dtype.is_integer:
        return operator.index
    return bool if spec.dtype == tf.bool else float


def _input(spec: Any) -> Any:
    """Returns what stands for one input when a graph is traced: a spec without a name."""
    if isinstance(spec, tf.Tensor) or getattr(spec, "dtype", None) in (tf.resource, tf.variant):
        return spec  # It knows to what kind of resource it leads.
    if not isinstance(spec, tf.TensorSpec):
        raise errors.ConfigError(
            f"{spec!r} is among the specs of a remote function; expected specs, tensors or None, "
            "with Python numbers under numbers="
        )
    return tf.TensorSpec(spec.shape, spec.dtype)
