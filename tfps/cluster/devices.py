"""The devices of a cluster's tasks."""


def worker_device(index: int) -> str:
    """Returns the device of a worker's steps. TensorFlow picks the worker's GPU if it has one."""
    return f"/job:worker/replica:0/task:{index}"


def ps_device(index: int) -> str:
    """Returns the device of a parameter server, its CPU."""
    return f"/job:ps/replica:0/task:{index}/device:CPU:0"
