"""Which tasks this process's context spans, and how that changes: private names of TensorFlow 2.21.

`tf.config.experimental_connect_to_cluster` makes a context over all tasks of a cluster.
`update_server_def` takes tasks out of it and into it, while what is on the other tasks stays, and
calls on them go on. TensorFlow's runtime
(`tensorflow/core/common_runtime/eager/context_distributed_manager.cc`) asks every task that stays
whether it has the context, without a deadline, and makes the context anew, empty, where the answer
is no.
"""

import copy
from collections.abc import Iterable

import tensorflow as tf
from tensorflow.core.framework import device_attributes_pb2
from tensorflow.python import pywrap_tfe
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.eager import context

from tfps import _tf

_UINT64 = (1 << 64) - 1

# The tag of a protocol buffer's field 1 if the field is a message.
_FIELD_1 = 0x0A


def connected_tasks() -> dict[tuple[str, int], str]:
    """Returns (job, index) -> address of the tasks that the context spans, itself included."""
    if (server := context.get_server_def()) is None:
        return {}
    return {(job.name, i): job.tasks[i] for job in server.cluster.job for i in job.tasks}


def incarnations() -> dict[tuple[str, int], int]:
    """Returns (job, index) -> incarnation of the tasks whose devices the context has."""
    found: dict[tuple[str, int], int] = {}
    if not _tf.is_connected():
        return found
    devices = pywrap_tfe.TFE_ContextListDevices(context.context()._handle)
    try:
        for i in range(pywrap_tfe.TF_DeviceListCount(devices)):
            spec = tf.DeviceSpec.from_string(pywrap_tfe.TF_DeviceListName(devices, i))
            if spec.device_type == "CPU" and spec.device_index == 0:
                number = pywrap_tf_session.TF_DeviceListIncarnation(devices, i)
                found[spec.job, spec.task] = number & _UINT64
    finally:
        pywrap_tfe.TF_DeleteDeviceList(devices)
    return found


def connect(tasks: Iterable[tuple[str, int, str]], without: Iterable[tuple[str, int]] = ()) -> None:
    """Changes which tasks the context spans, as `update_server_def` does; may block without limit.

    Args:
      tasks: (job, index, `host:port`) of tasks that join.
      without: (job, index) of tasks that leave.

    Raises:
      tf.errors.OpError: a task failed meanwhile. The other changes may have been made.
    """
    server = copy.deepcopy(context.get_server_def())
    # They hold from the first connection on; TensorFlow would warn that they are ignored now.
    server.ClearField("cluster_device_filters")
    jobs = {job.name: job for job in server.cluster.job}
    for job, index in without:
        jobs[job].tasks.pop(index, None)
    for job, index, address in tasks:
        jobs[job].tasks[index] = address
    context.context().update_server_def(server)


def incarnation(status: bytes | None) -> int | None:
    """Returns the number that a process drew for its CPU:0 when its server started.

    Args:
      status: a serialized `GetStatusResponse`, whose repeated field 1 has the devices; or None.
    """
    device = _first_cpu(status)
    return None if device is None else int(device.incarnation)


def served_as(status: bytes | None) -> tuple[str, int] | None:
    """Returns (job, index) as which a server was started; see `incarnation`."""
    device = _first_cpu(status)
    if device is None:
        return None
    spec = tf.DeviceSpec.from_string(device.name)
    return spec.job, spec.task


def _first_cpu(status: bytes | None) -> device_attributes_pb2.DeviceAttributes | None:
    at = 0
    while status and at < len(status) and status[at] == _FIELD_1:
        size, at = _varint(status, at + 1)
        device = device_attributes_pb2.DeviceAttributes.FromString(status[at : at + size])
        if device.name.endswith("CPU:0"):
            return device
        at += size
    return None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns (the number that begins at a place, the place after it)."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


class Token:
    """Something in the memory that a task keeps for this process's context.

    A task that misses a change of the context gets an empty one, although its process is the same.
    The token is then gone, with all variables.
    """

    def __init__(self, job: str, index: int):
        """Makes the token on a task; blocks while the task does not answer."""
        with (
            tf.init_scope(),
            tf.device(f"/job:{job}/task:{index}/device:CPU:0"),
            _tf.own_executor(),
        ):
            self._variable = tf.Variable(True, trainable=False)

    def is_there(self) -> bool:
        """Returns whether the task still has the token; blocks while the task does not answer."""
        try:
            with tf.init_scope(), _tf.own_executor():
                found = tf.raw_ops.VarIsInitializedOp(resource=self._variable.handle)
                return bool(found.numpy())
        except tf.errors.OpError:
            return False
