"""Tensors of this process for calls on other tasks: private names of TensorFlow 2.21.

TensorFlow lets an operation on another task take a tensor of this process. It sends the tensor, and
remembers in a mirror that the task has it. While tasks join or leave the context, mirrors can go
wrong (`tensorflow/core/common_runtime/eager/tensor_handle.cc` compares their "view" of the context
with the present one): in a few of a hundred changes, a call on a task that stays fails because the
task does not find the tensor, or waits for ever for a mirror that is never filled. Tensors that the
task owns are not affected. So nothing of this process is given to a call: each tensor is copied to
the task first, and the copy is the task's own.
"""

import functools
import threading
from collections.abc import Callable, Sequence

import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context

from tfps import _tf

# Task -> number of its present life, in which it has whatever it was given in this life. A new
# connection begins a new life of every task, and so does a task's return.
_lives: dict[str, int] = {}
_connections = 0


def connected_anew() -> None:
    """Notes that this process has connected to a cluster: no task has anything of it."""
    global _connections
    _connections += 1


def joined(job: str, index: int) -> None:
    """Notes that a task has joined the cluster, with an empty memory."""
    cpu = f"/job:{job}/replica:0/task:{index}/device:CPU:0"
    _lives[cpu] = _lives.get(cpu, 0) + 1


def task_in_scope() -> str | None:
    """Returns the CPU of the task in whose `tf.device` block the caller is; None if it is this."""
    return _cpu(context.context().device_name, _tf.local_job())


@functools.lru_cache(maxsize=4096)
def _cpu(device: str | None, local_job: str | None) -> str | None:
    spec = tf.DeviceSpec.from_string(device or "")
    if spec.job in (None, "localhost", local_job) or spec.task is None:
        return None
    return f"/job:{spec.job}/replica:0/task:{spec.task}/device:CPU:0"


class _Sender(threading.local):
    """For each thread, the executor of its copies.

    An executor that waits for each operation would do so with the interpreter's lock held. This
    one does not, and several tensors cross together.
    """

    def __init__(self) -> None:
        # `NewExecutor(is_async, enable_streaming_enqueue, in_flight_nodes_limit)`
        self.executor = _tf.OwnExecutor(pywrap_tfe.TFE_NewExecutor(True, True, 0))


_sender = _Sender()


def copied(tensors: Sequence[tf.Tensor], cpu: str) -> list[tf.Tensor]:
    """Copies tensors of this process to a task, and waits until the task has them.

    Args:
      tensors: tensors of any dtype but resource.
      cpu: the task's CPU, as `task_in_scope` returns it.

    Raises:
      tf.errors.OpError: the task did not get them.
    """
    present = context.context()
    before, executor = present.executor, _sender.executor
    try:
        present.executor = executor
        try:
            copies = [t._copy_nograd(present, cpu) for t in tensors]
        finally:
            present.executor = before
        executor.wait()
    except BaseException:
        executor.clear_error()
        raise
    return copies


def is_here(tensor: tf.Tensor) -> bool:
    """Whether this process has the tensor, rather than another task."""
    return not _is_remote(tensor.device, _tf.local_job())


@functools.lru_cache(maxsize=4096)
def _is_remote(device: str, local_job: str | None) -> bool:
    return _cpu(device, local_job) is not None


def on_task(tensors: Sequence[tf.Tensor], which: Sequence[int], cpu: str) -> list[tf.Tensor]:
    """The tensors, where those of this process are replaced by copies on a task.

    Args:
      tensors: handles among them are left as they are.
      which: indices of the tensors that are no handles.
      cpu: see `copied`.
    """
    given = list(tensors)
    here = [i for i in which if type(given[i]) is _tf.EagerTensor and is_here(given[i])]
    if here:
        copies = copied([given[i] for i in here], cpu)
        for i, copy in zip(here, copies, strict=True):
            given[i] = copy
    return given


class Residents:
    """Tensors that each task has, made when it first needs them and kept for its life."""

    def __init__(self, make: Callable[[str], list[tf.Tensor]]):
        """Makes nothing yet.

        Args:
          make: makes the tensors on a task whose CPU it is given.
        """
        self._make = make
        # The task's CPU -> (its life, its tensors).
        self._made: dict[str, tuple[tuple[int, int], list[tf.Tensor]]] = {}

    def on(self, cpu: str) -> list[tf.Tensor]:
        """Returns the tensors that a task has; see `task_in_scope`."""
        life = _connections, _lives.get(cpu, 0)
        made = self._made.get(cpu)
        if made is None or made[0] != life:
            made = self._made[cpu] = life, self._make(cpu)
        return made[1]
