"""What workers remember while nobody trains, of whom some are lost."""

import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps.training.training_state import TrainingState
from tfps.worker.worker_step import WorkerMemory


class Workers:
    """Calls on three workers, of which one may die while it is called."""

    num_workers, pending = 3, 0

    def __init__(self):
        self.living, self.lives = {0, 1, 2}, [0, 0, 0]
        self.dies = None

    def lose(self, worker):
        self.living.discard(worker)
        self.lives[worker] += 1

    def run_on_each(self, function):
        if self.dies is not None:
            self.lose(self.dies)
        return [function(w) if w in self.living else None for w in range(3)]


class Tensor:
    """A tensor on a worker, which nobody can read once the worker's process is dead."""

    def __init__(self, workers, worker):
        self._workers, self._worker, self._life = workers, worker, workers.lives[worker]

    def numpy(self):
        workers, worker = self._workers, self._worker
        if worker not in workers.living or workers.lives[worker] != self._life:
            raise tf.errors.UnavailableError(None, None, "the process is gone")
        return np.float32(worker)


EXCHANGE = tfps.LocalSteps(2).exchange


@pytest.fixture
def kept():
    """Three workers, and a training state in which each of them has kept something."""
    workers = Workers()
    state = TrainingState(workers, warmup=0)
    tensors = [Tensor(workers, w) for w in range(3)]
    memory = [WorkerMemory({4: (tensor,)}, [tensor]) for tensor in tensors]
    state.keep_memory(EXCHANGE, memory)
    return workers, state


def read(state):
    """What the one kind of memory is, by worker."""
    (memory,) = state.memory().values()
    return memory


def test_what_is_kept_can_be_read_and_taken(kept):
    _, state = kept
    expected = [WorkerMemory({4: (np.float32(w),)}, [np.float32(w)]) for w in range(3)]
    assert read(state) == expected
    assert [len(one.inner) for one in state.take_memory(EXCHANGE)] == [1, 1, 1]
    assert state.take_memory(EXCHANGE) == [None, None, None]
    assert state.memory() == {}


@pytest.mark.parametrize("returns", [False, True])
def test_a_worker_that_was_lost_since_has_kept_nothing(kept, returns):
    workers, state = kept
    workers.lose(1)
    if returns:
        workers.living.add(1)
    assert [one is None for one in read(state)] == [False, True, False]
    assert [one is None for one in state.take_memory(EXCHANGE)] == [False, True, False]


def test_a_worker_that_dies_while_it_is_read_has_kept_nothing(kept):
    workers, state = kept
    workers.dies = 2
    assert [one is None for one in read(state)] == [False, False, True]


def test_a_worker_that_is_gone_when_memory_is_kept(kept):
    """A run that ends with an error may not know yet who is lost."""
    workers, state = kept
    memory = state.take_memory(EXCHANGE)
    workers.lose(0)
    state.keep_memory(EXCHANGE, memory)
    workers.living.add(0)
    assert [one is None for one in state.take_memory(EXCHANGE)] == [True, False, False]
