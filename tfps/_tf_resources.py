"""Variables, tables and what captured them: private names of TensorFlow 2.21."""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.function.capture import capture_container
from tensorflow.python.data.ops import structured_function
from tensorflow.python.distribute import load_context, ps_values
from tensorflow.python.eager import context
from tensorflow.python.framework import ops
from tensorflow.python.ops import resource_variable_ops, summary_ops_v2
from tensorflow.python.trackable import resource

from tfps import _tf


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
    if type(handle) is not _tf.EagerTensor or handle._id < since:
        return False
    return tf.DeviceSpec.from_string(handle.device).job == _tf.local_job()


def handle_of(variable: Any) -> tf.Tensor | None:
    """Returns the handle of a variable; None if it is a wrapper of other variables."""
    return vars(variable).get("_handle")


def set_handle(variable: Any, handle: tf.Tensor) -> None:
    """Lets a variable be what another handle leads to."""
    variable._handle = handle


def rehomed(variable: Any) -> tf.Tensor | None:
    """Makes a resource with the value and the properties of a variable.

    Returns:
      The handle of the new resource, or None if the variable has no value: not yet, or no longer,
      because its device ended with an earlier context of TensorFlow's.
    """
    old = variable._handle
    with tf.init_scope(), tf.device(old.device):
        try:
            if not tf.raw_ops.VarIsInitializedOp(resource=old):
                return None
        except tf.errors.InvalidArgumentError as e:
            if "unknown device" not in e.message:
                raise
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


def renew(variable: Any) -> None:
    """Lets a variable be a new resource without a value, on the device of the old one.

    The old resource is not touched: its process may be gone.
    """
    old = variable._handle
    with tf.init_scope(), tf.device(old.device):
        kind = tf.zeros([], variable.dtype)
        name = variable._handle_name.split(":")[0]
        new = resource_variable_ops.eager_safe_variable_handle(
            kind, variable.shape, None, name, graph_mode=False
        )
    for attribute in ("_parent_trackable", "_name", "_unique_id"):
        if hasattr(old, attribute):
            setattr(new, attribute, getattr(old, attribute))
    set_handle(variable, new)


def without_value(shape: Sequence[int], dtype: tf.DType) -> tf.Variable:
    """Makes a variable that has no value yet, on the device in scope, whatever the strategy."""
    return resource_variable_ops.UninitializedVariable(
        trainable=False, shape=list(shape), dtype=dtype
    )


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
    return [t for t in captured if type(t) is _tf.EagerTensor and t.dtype == tf.resource]


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
