"""Who calls, executors, devices: private names of TensorFlow 2.21.

Nothing but the files `_tf*.py` imports from `tensorflow.python`.
"""

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.distribute.coordinator import (
    cluster_coordinator,
    coordinator_context,
    metric_utils,
    remote_value,
)
from tensorflow.python.eager import cancellation, context, executor
from tensorflow.python.framework import none_tensor, ops

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


def created_by_tfps() -> bool:
    """Returns whether tfps itself creates the variable that is being created under a strategy.

    Creators of variables, ours among them, are called from within `tf.Variable`, so that only the
    frames around it count.
    """
    frames = iter(_stack())
    for frame in frames:
        name = _module(frame), frame.f_code.co_name
        if name == ("tensorflow.python.ops.variables", "__call__"):
            break
    outside = (_module(frame) for frame in frames)
    return next((m for m in outside if not m.startswith("tensorflow.")), "").startswith("tfps.")


def keras3_method() -> str | None:
    """Returns which method of a Keras 3 model called the strategy, such as `fit`; or None."""
    if _caller() != _KERAS_TRAINER:
        return None
    names = [f.f_code.co_name for f in _stack() if _module(f) == _KERAS_TRAINER]
    return next((name for name in names if name in _METHODS), "fit")


_KERAS_TRAINER = "keras.src.backend.tensorflow.trainer"
_ON_BATCH = ("train_on_batch", "test_on_batch", "predict_on_batch")
_METHODS = ("fit", "evaluate", "predict", *_ON_BATCH)


def _caller() -> str:
    """The module of the first frame of the stack that is neither TensorFlow's nor ours."""
    modules = map(_module, _stack())
    return next((m for m in modules if not m.startswith(_OWN_AND_TENSORFLOW)), "")


def _stack() -> Iterator[types.FrameType]:
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: types.FrameType) -> str:
    return frame.f_globals.get("__name__", "")


def num_ps_in_scope() -> int:
    """Returns how many parameter servers the strategy in scope has; 0 outside of such a scope."""
    return getattr(tf.distribute.get_strategy().extended, "_num_ps", 0)


RemoteValueStatus = remote_value.RemoteValueStatus


dispatch_context = coordinator_context.with_dispatch_context


CancellationManager: TypeAlias = cancellation.CancellationManager


ClosureInputError = cluster_coordinator.ClosureInputError
ResourceClosure = cluster_coordinator.ResourceClosure


def timed(
    metric: str, count: Callable[[], int] | None = None
) -> contextlib.AbstractContextManager[None]:
    """Returns a context whose seconds are added to a metric of TensorFlow's coordinator.

    Args:
      metric: `function_tracing`, `closure_execution`, `remote_value_fetch` or
        `server_def_update`.
      count: if given, the block counts only if it has changed what this returns.
    """
    return metric_utils.monitored_timer(metric, count)


def set_gauge(metric: str, value: int) -> None:
    """Sets a metric of TensorFlow's coordinator: `queued_closures` or `inflight_closures`."""
    metric_utils.monitor_int(metric, value)


def count(metric: str) -> None:
    """Adds one to a metric of TensorFlow's coordinator: `worker_failures`."""
    metric_utils.monitor_increment_counter(metric)


def tracing_count(function: Any) -> int:
    """Returns how many times a `tf.function` has been traced."""
    return function._get_tracing_count()


def own_executor_in_scope() -> executor.Executor:
    """Returns the executor of this thread's operations."""
    return context.context().executor


class OwnExecutor(executor.Executor):
    """An executor that ends without a word about calls whose server is gone.

    TensorFlow's would print a stack trace, and keep what it holds in memory.
    """

    __slots__ = ()

    def __del__(self):
        with contextlib.suppress(Exception):  # Also while the interpreter ends.
            self.clear_error()
            self.wait()
        with contextlib.suppress(Exception):
            pywrap_tfe.TFE_DeleteExecutor(self._handle)


def new_executor() -> executor.Executor:
    """Returns an executor that runs one operation after the other."""
    # `Executor(enable_async, enable_streaming_enqueue, in_flight_nodes_limit)`
    return OwnExecutor(pywrap_tfe.TFE_NewExecutor(False, True, 0))


def forget_error() -> None:
    """Lets this thread's executor forget the error of its last operation, which was seen.

    TensorFlow would print it with a stack trace when whoever has asked for the executor lets go.
    """
    context.context().executor.clear_error()


@contextlib.contextmanager
def own_executor() -> Iterator[executor.Executor]:
    """Gives the operations of this thread an executor of their own.

    An executor keeps the error of its last operation until `clear_error`, and fails until then.
    """
    own = new_executor()
    with context.executor_scope(own):
        try:
            yield own
        finally:
            own.clear_error()


def device_in_scope() -> str:
    """Returns the device of the `tf.device` blocks around. What is traced depends on it."""
    return context.context().device_name


def chief_device() -> str:
    """Returns the device of this process, under the name that the cluster has for it."""
    return f"/job:{context.get_server_def().job_name}"


def is_connected() -> bool:
    """Returns whether this process has connected to servers, by a strategy of whatever kind."""
    return context.get_server_def() is not None


def local_job() -> str | None:
    """Returns the job in the name of this process's own devices; None while it has none yet."""
    if server := context.get_server_def():
        return server.job_name
    return "localhost" if context.context()._initialized else None
