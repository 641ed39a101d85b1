"""The private names of TensorFlow that tfps uses, as of TensorFlow 2.21.

Nothing else in the package imports from `tensorflow.python`.
"""

import contextlib
import gc
import os
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.core.function.capture import capture_container
from tensorflow.python import pywrap_tfe
from tensorflow.python.autograph.core import ag_ctx
from tensorflow.python.data.ops import structured_function
from tensorflow.python.data.util import structure
from tensorflow.python.distribute import load_context, ps_values
from tensorflow.python.distribute.coordinator import (
    cluster_coordinator,
    coordinator_context,
    metric_utils,
    remote_value,
)
from tensorflow.python.eager import backprop, cancellation, context, execute, executor
from tensorflow.python.eager.polymorphic_function import (
    atomic_function,
    autograph_util,
    function_type_utils,
    polymorphic_function,
)
from tensorflow.python.framework import none_tensor, ops
from tensorflow.python.ops import resource_variable_ops, summary_ops_v2
from tensorflow.python.trackable import resource
from tensorflow.python.util import variable_utils

# The type of a tensor outside of graphs. To make a tensor and ask for its type would settle
# TensorFlow's threads and devices as soon as tfps is imported.
EagerTensor = ops.EagerTensor

# What a dataset's spec has where its elements have None.
NoneTensorSpec = none_tensor.NoneTensorSpec

_OWN_AND_TENSORFLOW = ("tensorflow.", "tfps.")


def created_by_keras3() -> bool:
    """Returns whether the variable that is being created under a strategy is a Keras 3 variable.

    A variable creator sees only the arguments, which are the same for `tf.Variable` and for Keras
    3. The stack shows who asked.
    """
    return _caller() == "keras.src.backend.tensorflow.core"


def called_by_keras3_trainer() -> bool:
    """Returns whether `fit`, `evaluate` or `predict` of a Keras 3 model called the strategy."""
    return _caller() == "keras.src.backend.tensorflow.trainer"


def _caller() -> str:
    """The module of the first frame of the stack that is neither TensorFlow's nor ours."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(_OWN_AND_TENSORFLOW):
            return module
        frame = frame.f_back
    return ""


def num_ps_in_scope() -> int:
    """Returns how many parameter servers the strategy in scope has; 0 outside of such a scope."""
    return getattr(tf.distribute.get_strategy().extended, "_num_ps", 0)


RemoteValueStatus = remote_value.RemoteValueStatus
dispatch_context = coordinator_context.with_dispatch_context
CancellationManager: TypeAlias = cancellation.CancellationManager
ClosureInputError = cluster_coordinator.ClosureInputError


def timed(
    metric: str, count: Callable[[], int] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Returns a context whose seconds are added to a metric of TensorFlow's coordinator.

    Args:
      metric: `function_tracing`, `closure_execution` or `remote_value_fetch`.
      count: if given, the block counts only if it has changed what this returns.
    """
    return metric_utils.monitored_timer(metric, count)


def set_gauge(metric: str, value: int) -> None:
    """Sets a metric of TensorFlow's coordinator: `queued_closures` or `inflight_closures`."""
    metric_utils.monitor_int(metric, value)


def tracing_count(function: Any) -> int:
    """Returns how many times a `tf.function` has been traced."""
    return function._get_tracing_count()


def own_executor_in_scope() -> executor.Executor:
    """Returns the executor of this thread's operations."""
    return context.context().executor


@contextlib.contextmanager
def own_executor() -> Iterator[executor.Executor]:
    """Gives the operations of this thread an executor of their own.

    An executor keeps the error of its last operation until `clear_error`, and fails until then.
    """
    own = executor.new_executor(enable_async=False)
    with context.executor_scope(own):
        try:
            yield own
        finally:
            own.clear_error()


def independent(op: tf.Operation) -> None:
    """Lets a stateful operation of the function that is being traced run when its inputs are there.

    Otherwise TensorFlow runs stateful operations that touch no resource in the order in which they
    were traced, wherever they are placed.
    """
    ops.get_default_graph().experimental_acd_manager.run_independently(op)


# Held while classes of TensorFlow or Keras are changed for the trace of one thread.
patching = threading.RLock()


@contextlib.contextmanager
def tapes_watch(watched: Sequence[tuple[Any, tf.Tensor]]) -> Iterator[list[Any]]:
    """Lets tensors be to the `tf.GradientTape`s of this thread what trainable variables are.

    Each tape watches them from its beginning, as it watches each trainable variable that is read,
    unless the tape was made with `watch_accessed_variables=False`.

    Args:
      watched: pairs of a variable and the tensor that stands for it.

    Yields:
      The gradients that the tapes have returned so far, each of a single tensor.
    """
    thread, tape_class, returned = threading.get_ident(), tf.GradientTape, []
    push, variables = tape_class._push_tape, tape_class.watched_variables
    gradient = tape_class.gradient

    def push_and_watch(tape):
        begins = tape._tape is None
        push(tape)
        if begins and tape._watch_accessed_variables and threading.get_ident() == thread:
            tape.watch([tensor for _, tensor in watched])

    def watched_variables(tape):
        if threading.get_ident() != thread:
            return variables(tape)
        # Which tensors were read, the graph knows; tensors outside of graphs do not.
        return tuple(v for v, t in watched if tf.executing_eagerly() or t.consumers())

    def noted_gradient(tape, *args, **kwargs):
        result = gradient(tape, *args, **kwargs)
        if threading.get_ident() == thread:
            returned.extend(tf.nest.flatten(result))
        return result

    with patching:
        tape_class._push_tape = push_and_watch
        tape_class.watched_variables = watched_variables
        tape_class.gradient = noted_gradient
        try:
            yield returned
        finally:
            tape_class._push_tape, tape_class.watched_variables = push, variables
            tape_class.gradient = gradient


@contextlib.contextmanager
def functions_inlined() -> Iterator[None]:
    """Makes calls of `tf.function`s by this thread a part of the code around them.

    Otherwise what they assign to variables in a stateless scope would be tensors of other graphs.
    Functions that Keras itself compiles with XLA assign nothing, and stay functions: what they do,
    such as a convolution of groups on a processor, has no other kernel.
    """
    thread, function_class = threading.get_ident(), polymorphic_function.Function
    call = function_class.__call__

    def inlined(function, *args, **kwargs):
        if threading.get_ident() != thread:
            return call(function, *args, **kwargs)
        python = function.python_function
        if function._jit_compile and python.__module__.startswith("keras."):
            return call(function, *args, **kwargs)
        # As TensorFlow binds them: to the signature if there is one, with its dtypes.
        bound = function_type_utils.canonicalize_function_inputs(
            args, kwargs, function.function_type, function._default_values
        )
        given = tf.nest.map_structure(_argument, (bound.args, bound.kwargs))
        if not function._autograph:
            return _results(python(*given[0], **given[1]), python)
        options = function._experimental_autograph_options
        with ag_ctx.ControlStatusCtx(status=ag_ctx.Status.ENABLED):
            converted = autograph_util.py_func_from_autograph(python, options)
            return _results(converted(*given[0], **given[1]), python)

    with patching:
        function_class.__call__ = inlined
        try:
            yield
        finally:
            function_class.__call__ = call


def _argument(value: Any) -> Any:
    """What a `tf.function` makes of an argument, or of a part of it: a tensor of an array."""
    if isinstance(value, (np.ndarray, np.generic)):
        return tf.convert_to_tensor(value)
    return value


def _results(values: Any, function: Callable) -> Any:
    """What a `tf.function` makes of what its Python function returns: tensors and composites.

    Raises:
      TypeError: a value is nothing of this kind, as in TensorFlow.
    """

    def converted(value):
        if value is None or isinstance(value, (tf.Operation, tf.TensorArray)):
            return value
        try:
            return ops.convert_to_tensor_or_composite(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"the tf.function {function} returned a {type(value).__name__}, but may return "
                "only tensors, extension types and None; return what can become a tensor"
            ) from None

    tensors = variable_utils.convert_variables_to_tensors(values)
    return tf.nest.map_structure(converted, tensors, expand_composites=True)


def python_on_chief() -> contextlib.AbstractContextManager[None]:
    """A context in which operations that call Python (`tf.py_function`) are placed on the chief.

    Only the process that made such an operation has the Python function.
    """
    if tf.executing_eagerly():
        return contextlib.nullcontext()
    chief = f"{chief_device()}/replica:0/task:0/device:CPU:0"
    return tf.compat.v1.device(lambda op: chief if op.type in _PYTHON else op.device)


_PYTHON = ("EagerPyFunc", "PyFunc", "PyFuncStateless")


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

    with patching, tf.compat.v1.device(device_of):
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


def device_in_scope() -> str:
    """Returns the device of the `tf.device` blocks around. What is traced depends on it."""
    return context.context().device_name


def skipping(dataset: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """The dataset without its first elements, on the device on which the dataset is."""
    with tf.device(dataset._variant_tensor.device):
        return dataset.skip(count)


class Elements:
    """The elements of an iterator of this process, one after the other.

    An optional for each element, which asks whether there is one and then for its value, takes ten
    times as long; Python's `next` takes four times as long.
    """

    def __init__(self, iterator: tf.data.Iterator):
        """Reads nothing yet.

        Args:
          iterator: on this process's device.
        """
        self._iterator = iterator
        self._flat = {
            "output_types": iterator._flat_output_types,
            "output_shapes": iterator._flat_output_shapes,
        }
        self._spec = iterator.element_spec
        leaves = tf.nest.flatten(self._spec)
        self._is_plain = all(isinstance(leaf, tf.TensorSpec) for leaf in leaves)
        # The end is an error, which must not be found by others who use the same executor.
        self._executor = executor.new_executor(enable_async=False)

    def next(self) -> Any:
        """The next element.

        Raises:
          EOFError: there is none.
          tf.errors.OpError: the dataset failed.
        """
        try:
            with context.executor_scope(self._executor):
                flat = tf.raw_ops.IteratorGetNext(
                    iterator=self._iterator._iterator_resource, **self._flat
                )
        except tf.errors.OutOfRangeError as e:
            self._executor.clear_error()
            if "End of sequence" not in e.message:
                raise
            raise EOFError from None
        except tf.errors.OpError:
            self._executor.clear_error()
            raise
        if self._is_plain:
            return tf.nest.pack_sequence_as(self._spec, flat)
        return structure.from_compatible_tensor_list(self._spec, flat)


def length_of(dataset: tf.data.Dataset) -> int:
    """The number of a dataset's elements, or a negative number: no end, or not known."""
    with tf.device(dataset._variant_tensor.device):
        return int(dataset.cardinality().numpy())


def chief_device() -> str:
    """Returns the device of this process, under the name that the cluster has for it."""
    return f"/job:{context.get_server_def().job_name}"


def local_job() -> str | None:
    """Returns the job in the name of this process's own devices; None while it has none yet."""
    if server := context.get_server_def():
        return server.job_name
    return "localhost" if context.context()._initialized else None


def connection() -> tuple[bytes, str, str] | None:
    """Returns what this process is connected to, to be compared; None if to nothing.

    Returns:
      (the tasks of the cluster, the job of this process in it, its own `host:port`).
    """
    server = context.get_server_def()
    if server is None:
        return None
    addresses = {job.name: job.tasks for job in server.cluster.job}
    own = addresses[server.job_name][server.task_index]
    return server.cluster.SerializeToString(deterministic=True), server.job_name, own


TABLES = (
    tf.lookup.StaticHashTable,
    tf.lookup.experimental.MutableHashTable,
    tf.lookup.experimental.DenseHashTable,
    resource.RestoredResource,
)
VARIABLES = (resource_variable_ops.BaseResourceVariable,)
WRITERS = (summary_ops_v2._ResourceSummaryWriter,)


def live(*kinds: tuple[type, ...] | type) -> list[list[Any]]:
    """Looks through all objects of the process.

    Args:
      *kinds: classes, or tuples of classes.

    Returns:
      For each of `kinds`, its instances.
    """
    # To ask `issubclass` for every object, instead of every type, would take a second.
    known: dict[type, list[list]] = {}
    found: list[list] = [[] for _ in kinds]
    for candidate in gc.get_objects():
        kind = type(candidate)
        lists = known.get(kind)
        if lists is None:
            pairs = zip(kinds, found, strict=True)
            lists = known[kind] = [into for wanted, into in pairs if issubclass(kind, wanted)]
        for into in lists:
            into.append(candidate)
    return found


def now() -> int:
    """Returns a number above the `born` of all tensors, and below that of tensors to come."""
    return ops.uid()


def is_here(handle: Any, since: int) -> bool:
    """Returns whether a handle was made after `since`, and leads to a device of this process.

    An older handle is not touched. Its connection may have ended, and then TensorFlow would follow
    a pointer to a device that is gone.

    Args:
      handle: of a resource, or anything else.
      since: what `now` returned.
    """
    if type(handle) is not EagerTensor or handle._id < since:
        return False
    return tf.DeviceSpec.from_string(handle.device).job == local_job()


def handle_of(variable: Any) -> tf.Tensor | None:
    """Returns the handle of a variable; None if it is a wrapper of other variables."""
    return vars(variable).get("_handle")


def set_handle(variable: Any, handle: tf.Tensor) -> None:
    """Lets a variable be what another handle leads to."""
    variable._handle = handle


def rehomed(variable: Any) -> tf.Tensor | None:
    """Makes a resource with the value and the properties of a variable.

    Returns:
      The handle of the new resource, or None if the variable has no value yet.
    """
    old = variable._handle
    with tf.init_scope(), tf.device(old.device):
        if not tf.raw_ops.VarIsInitializedOp(resource=old):
            return None
        value = tf.raw_ops.ReadVariableOp(resource=old, dtype=variable.dtype)
        new = resource_variable_ops.eager_safe_variable_handle(
            value, variable.shape, None, variable._handle_name.split(":")[0], graph_mode=False
        )
        tf.raw_ops.AssignVariableOp(resource=new, value=value)
    for name in ("_parent_trackable", "_name", "_unique_id"):
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
    return new


def named_handle_of(table: Any) -> tf.Tensor | None:
    """Returns the handle of a table that is found by a name; None if the handle itself leads to it.

    Also None for a wrapper of other tables, and for a table that has no handle yet.
    """
    if vars(table).get("_is_anonymous", False):
        return None
    return vars(table).get("_resource_handle_value")


def contents(table: Any) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Returns the keys and values of a table; None if it has none yet, or fills itself."""
    if isinstance(table, resource.RestoredResource):
        return None
    try:
        return tf.raw_ops.LookupTableExportV2(
            table_handle=table.resource_handle, Tkeys=table.key_dtype, Tvalues=table.value_dtype
        )
    except (tf.errors.AbortedError, tf.errors.NotFoundError):
        return None


def make_anew(table: Any, contents: tuple[tf.Tensor, tf.Tensor] | None) -> None:
    """Makes a table under its old name, so that all of its handles lead to the new one.

    Args:
      table: the table.
      contents: what `contents` returned for it.
    """
    with tf.init_scope(), tf.device(table.resource_handle.device):
        table._resource_handle = table._create_resource()
        if contents is None:
            if isinstance(table, resource.RestoredResource):
                table._initialize()
            return
        static = isinstance(table, tf.lookup.StaticHashTable)
        fill = tf.raw_ops.InitializeTableV2 if static else tf.raw_ops.LookupTableImportV2
        fill(table_handle=table.resource_handle, keys=contents[0], values=contents[1])


def captured_handles(graph: tf.types.experimental.ConcreteFunction) -> list[tf.Tensor]:
    """Returns the handles of resources that a graph has captured for all of its calls."""
    captured = graph._captured_inputs
    return [t for t in captured if type(t) is EagerTensor and t.dtype == tf.resource]


def static_table_of(handle: tf.Tensor) -> tf.lookup.StaticHashTable | None:
    """Returns the static lookup table that a handle leads to; None if it leads to another thing."""
    owner = getattr(handle, "_parent_trackable", lambda: None)()
    return owner if isinstance(owner, tf.lookup.StaticHashTable) else None


def capture_at_call(
    graph: tf.types.experimental.ConcreteFunction,
    handle: tf.Tensor,
    choose: Callable[[], tf.Tensor],
) -> None:
    """Lets each call of a graph take what `choose` returns in place of a captured handle."""
    graph.replace_capture_with_deferred_capture(handle, choose, tf.TensorSpec([], tf.resource))


_handles_of_chief = threading.local()


@contextlib.contextmanager
def tables_of_chief() -> Iterator[None]:
    """Lets a graph that this thread traces capture the chief's copy of tables, at trace time.

    A table made in the strategy's scope is captured anew for each call, which TensorFlow supports
    in functions, but not in the branches and loops in them. See `capture_at_call`.
    """
    before = getattr(_handles_of_chief, "wanted", False)
    _handles_of_chief.wanted = True
    try:
        yield
    finally:
        _handles_of_chief.wanted = before


class _ScopedTable(ps_values.DistributedTable):
    """A table of the strategy's scope, with a copy on each worker and on the chief."""

    @property
    def resource_handle(self) -> tf.Tensor:
        if getattr(_handles_of_chief, "wanted", False):
            return self._coordinator_instance.resource_handle
        return super().resource_handle


def scoped_tables(strategy: tf.distribute.Strategy, scopes: list[Any]) -> list[Any]:
    """Returns contexts in which static tables are made for a parameter-server strategy.

    Args:
      strategy: the strategy.
      scopes: what TensorFlow's strategy returns for the same purpose.
    """

    def make(next_creator: Callable, *args: Any, **kwargs: Any) -> Any:
        if load_context.in_load_context():
            return ps_values.RestoredDistributedTable(
                strategy, lambda: next_creator(*args, **kwargs)
            )
        return _ScopedTable(strategy, lambda: next_creator(*args, **kwargs))

    return [ops.resource_creator_scope("StaticHashTable", make), *scopes[1:]]


def present_connection() -> object:
    """Returns an object that stays the same while this process stays connected as it is."""
    return context.get_server_def()


def is_open(writer: Any, since: int) -> bool:
    """Returns whether a `tf.summary` writer was made after `since`, and has not been closed."""
    return writer._resource._id >= since and not writer._closed


def _has_graph(wrapper: Any) -> bool:
    return isinstance(vars(wrapper).get("_function"), tf.types.experimental.ConcreteFunction)


def replace_captures(handles: Mapping[int, tf.Tensor]) -> int:
    """Gives traced functions new handles in place of those that they captured.

    Args:
      handles: `id` of an old handle -> the new handle.

    Returns:
      The number of functions of `tf.data` among them. A dataset keeps the handles that its
      functions had when it was made.
    """
    functions, of_data, all_captures = live(
        tf.types.experimental.ConcreteFunction,
        structured_function.StructuredFunctionWrapper,
        capture_container.FunctionCaptures,
    )
    for function in functions:
        captured = vars(function).get("_captured_inputs") or []
        captured[:] = [handles.get(id(x), x) for x in captured]
    in_datasets = {id(f._function.graph._function_captures) for f in of_data if _has_graph(f)}
    found = 0
    for captures in all_captures:
        pairs = list(captures.by_val_capture_tuples)
        if any(id(outer) in handles for outer, _ in pairs):
            found += id(captures) in in_datasets
            outer = [handles.get(id(x), x) for x, _ in pairs]
            captures.reset_captures(outer, [inner for _, inner in pairs])
    return found


def on_chief(value: Any, dtype: tf.DType) -> tf.Tensor:
    """Makes a tensor in this process, whatever device is in scope.

    To enter `tf.device` would take longer than to make the tensor.

    Args:
      value: a number, or an array that must not change afterwards.
      dtype: the tensor's dtype.
    """
    return EagerTensor(value, None, dtype.as_datatype_enum)


def per_worker_spec(value: tf.distribute.coordinator.PerWorkerValue) -> tf.TypeSpec | None:
    """Returns the type that a function sees for a per-worker value, or None if it is not known."""
    return value._values[0]._type_spec


def by_worker(value: tf.distribute.coordinator.PerWorkerValue) -> tuple:
    """Returns the remote values that a per-worker value is made of, by worker."""
    return value._values


def signature_of(function: Any) -> tuple[tf.types.experimental.FunctionType | None, dict]:
    """Returns how a `tf.function` binds Python arguments, and the arguments' default values.

    A concrete function has none of both: the result is (None, {}).
    """
    if isinstance(function, tf.types.experimental.ConcreteFunction):
        return None, {}
    return function.function_type, getattr(function, "_default_values", None) or {}


def nothing_recorded(function: tf.types.experimental.ConcreteFunction) -> bool:
    """Returns whether no output is a handle, which needs bookkeeping that `FlatFunction` omits."""
    outputs = function.function_type.flat_outputs
    return not any(output.dtype in (tf.resource, tf.variant) for output in outputs)


def late_captures(function: Any) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Captures in the present graph what a function captures each time that it is called.

    Returns:
      (placeholder in the function's graph, tensor of the present graph) of each such capture.
    """
    graph = function.graph
    inside = tf.nest.flatten(graph.deferred_internal_captures, expand_composites=True)
    outside = [tensor for capture in graph.deferred_external_captures for tensor in capture()]
    return list(zip(inside, outside, strict=True))


def compiled(function: tf.types.experimental.ConcreteFunction) -> bool:
    """Returns whether XLA compiles the function as a whole, as `jit_compile=True` says."""
    return function.function_def.attr["_XlaMustCompile"].b


@contextlib.contextmanager
def being_scheduled(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Enters the strategy's scope, in which its methods know that the coordinator calls them."""
    with strategy.scope():
        before = strategy.extended._being_scheduled
        strategy.extended._being_scheduled = True
        try:
            yield
        finally:
            strategy.extended._being_scheduled = before


class _Interpolated(atomic_function.InterpolateRuntimeError):
    """Adds to an error of a graph where the user's code made the operation that failed.

    TensorFlow's own adds every frame between the program and the operation, which are dozens of
    lines, of which those of libraries say nothing.
    """

    DENY_LIST_PHRASES = (
        *atomic_function.InterpolateRuntimeError.DENY_LIST_PHRASES,
        *(f"{os.sep}{name}{os.sep}" for name in ("tensorflow", "keras", "tfps")),
        os.path.dirname(os.__file__) + os.sep,
        "<frozen ",
    )

    def interpolate(self, message, node_names, graph_debug_info):
        """See TensorFlow's class."""
        # An error that comes over several servers names the node once for each of them.
        names = list(dict.fromkeys(node_names))
        text = super().interpolate(message, names, graph_debug_info)
        return re.sub(r"\n{2,}(?=  File )", "\n", text)


class FlatFunction:
    """A concrete function that is called with flat tensors and returns flat tensors.

    TensorFlow spends a third of the time of a remote call on binding Python arguments, on recording
    for gradients, and on packing results. A caller of the same function needs that once.
    """

    def __init__(
        self,
        function: tf.types.experimental.ConcreteFunction,
        signature: tuple[tf.types.experimental.FunctionType | None, dict] = (None, {}),
        store: Callable | None = None,
        place: Sequence[tf.TensorSpec] = (),
    ):
        """Prepares the calls of a graph.

        Args:
          function: the graph.
          signature: how the `tf.function` binds arguments from which the graph was traced; see
            `signature_of`.
          store: what is done with the outputs, or None if a call returns them. It is called in
            the graph with the list of flat outputs and with the tensors of a place, and a call
            returns what it returns.
          place: specs of the tensors of a place.
        """
        self._function = function
        self._signature, self._defaults = signature
        self._inner = function._inference_function
        self._called = function if store is None else self._storing(store, place)
        self._graph = self._called._inference_function
        self._name = self._graph.name.decode()
        self._outputs = len(self._graph.function_type.flat_outputs)
        attrs = context.context().function_call_options.as_attrs()
        self._attrs = tuple(part for item in attrs.items() for part in item)
        self._captures = None
        if not any(callable(c) for c in function._captured_inputs):
            self._captures = function.captured_inputs

    def bound(self, args: tuple, kwargs: dict) -> list[tf.Tensor]:
        """Returns the tensors of Python arguments, in the order of the function's inputs."""
        kind = self._function.function_type
        signature = self._signature or kind
        try:
            return kind.unpack_inputs(
                function_type_utils.bind_function_inputs(args, kwargs, signature, self._defaults)
            )
        except TypeError:
            # A concrete function may also be called with nothing but its tensors.
            flat = kind.flat_inputs
            if kwargs or len(args) != len(flat):
                raise
            return [tf.convert_to_tensor(x, i.dtype) for x, i in zip(args, flat, strict=True)]

    def _storing(
        self, store: Callable, place: Sequence[tf.TensorSpec]
    ) -> tf.types.experimental.ConcreteFunction:
        """Traces a graph that calls the function, and has the inputs of a place besides."""
        inputs = [tf.TensorSpec(x.shape, x.dtype) for x in self._function.inputs]

        inner = self._inner

        def call(*tensors):
            outputs = inner.call_flat(*tensors[: len(inputs)])
            return store(outputs, *tensors[len(inputs) :])

        call.__name__ = self._function.graph.name  # TensorFlow's errors name it.
        function = tf.function(call, autograph=False)
        # The device in scope is one worker's; the graph is for all.
        with tf.device(None):
            return function.get_concrete_function(*inputs, *place)

    def __call__(
        self,
        inputs: list[tf.Tensor],
        manager: CancellationManager | None = None,
        place: Sequence[tf.Tensor] = (),
    ) -> list[tf.Tensor]:
        """Runs the graph on the device in scope, until it ends or `manager` cancels it.

        Args:
          inputs: tensors as `bound` gives them.
          manager: what can cancel the call, or None if nothing can.
          place: the tensors that tell `store` where to put the outputs.

        Returns:
          The flat outputs, or what `store` returns.
        """
        # Some captures are chosen by worker: a table, or the worker's index.
        captures = self._function.captured_inputs if self._captures is None else self._captures
        given = [*inputs, *captures, *place]
        with _Interpolated(self._graph):
            if manager is None:
                return execute.execute(
                    self._name, self._outputs, given, self._attrs, context.context()
                )
            return execute.execute_with_cancellation(
                self._name, self._outputs, given, self._attrs, context.context(), manager
            )

    def packed(self, outputs: list[tf.Tensor] | None) -> Any:
        """Returns flat outputs in the structure that the Python function returned."""
        return self._inner.function_type.pack_output(outputs)
