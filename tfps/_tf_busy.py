"""What TensorFlow waits for while servers are busy: private names of TensorFlow 2.21.

`Context.sync_executors` and `Context.export_run_metadata` wait until every server is idle, and a
parameter server is not idle before training ends. In the middle of it, a hook of a callback may
call Keras's own `predict`, which synchronizes after each batch, and
`keras.callbacks.TensorBoard(profile_batch=...)` exports metadata.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.eager import context
from tensorflow.python.ops import summary_ops_v2

_lock = threading.Lock()
_busy = 0
# A trace, and `id` of a function -> the function, for those that ran during the trace.
_noted: tuple[Any, dict[int, Any]] = (None, {})
_stock_export = context.Context.export_run_metadata
_stock_sync = context.Context.sync_executors


def note(function: tf.types.experimental.ConcreteFunction) -> None:
    """Notes that a function runs on a server, if somebody traces (`tf.summary.trace_on`)."""
    global _noted
    if (trace := summary_ops_v2._current_trace_context) is None:
        return
    if _noted[0] is not trace:
        _noted = trace, {}
    _noted[1][id(function)] = function


@contextlib.contextmanager
def busy_server() -> Iterator[None]:
    """A context in which a server may be busy, so that nobody waits until all are idle."""
    global _busy
    with _lock:
        _busy += 1
        context.Context.sync_executors = _sync
        context.Context.export_run_metadata = _export
    try:
        yield
    finally:
        with _lock:
            _busy -= 1


def _sync(self: context.Context) -> None:
    """Takes the place of `Context.sync_executors`: all that Keras calls is over when it returns."""
    if not _busy:
        _stock_sync(self)


def _export(self: context.Context) -> config_pb2.RunMetadata | None:
    """Takes the place of `Context.export_run_metadata`."""
    global _noted
    if not _busy:
        return _stock_export(self)
    trace, functions = _noted
    _noted = None, {}
    found = config_pb2.RunMetadata()
    if trace is summary_ops_v2._current_trace_context:
        for function in functions.values():
            graphs = found.function_graphs.add()
            graphs.pre_optimization_graph.CopyFrom(function.graph.as_graph_def())
    return found
