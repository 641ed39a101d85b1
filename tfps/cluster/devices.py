"""The devices of a cluster's tasks."""


def worker_device(index: int) -> str:
    """The device of a worker's steps: TensorFlow picks its GPU where it has one."""
    return f"/job:worker/replica:0/task:{index}"


def ps_device(index: int) -> str:
    """The CPU of a parameter server."""
    return f"/job:ps/replica:0/task:{index}/device:CPU:0"
