"""The scheduled closures: which of them wait, which run, and what went wrong."""

import collections
import threading
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster import failures, health, members
from tfps.cluster.members import Task
from tfps.cluster.spec import Cluster
from tfps.coordinator import faults, recovery
from tfps.coordinator.closures import ClosureLane, Round
from tfps.coordinator.failure_handler import FailureHandler
from tfps.coordinator.faults import Faults
from tfps.coordinator.held import Held
from tfps.coordinator.own_queues import OwnQueues
from tfps.coordinator.queued import Queued
from tfps.coordinator.remote_value import RemoteValue, Resource, Source
from tfps.coordinator.resources import Resources

# Closures that may wait before `put` blocks: TensorFlow's limit.
_LIMIT = 256 * 1024

# s between two looks of somebody who waits.
_LOOK = 1.0

_STOPPED = "The coordinator has stopped."


class WorkQueue:
    """One queue for all workers, a queue of each worker's own, and the account of both.

    A lane takes a closure and reports what became of it. A closure whose worker was lost goes to
    the tail of the queue, and the lanes of the worker pause until it has come back; a closure that
    only this worker may run goes to the head of the worker's own queue. The chief's threads wait
    here for closures, and whoever waits has the servers asked whether they live.

    Attributes:
      cluster: the cluster whose workers run the closures.
      lanes_per_worker: number of closures that a worker runs at the same time, at most.
      used: whether a closure was ever put here.
      failure_handler: has lost workers taken in again while nobody waits, once it is started.
      errors_named: see `Faults.errors_named`.
    """

    def __init__(self, cluster: Cluster, resources: Resources | None = None):
        """Has no lanes yet.

        Args:
          cluster: whose workers run the closures.
          resources: the per-worker values, which are made again on workers that come back.
        """
        self.cluster = cluster
        self.lanes_per_worker = 1
        self.used = False
        self._lanes: list[ClosureLane] = []
        self._members = members.of(cluster)
        self._faults = Faults(self._members)
        self._recovery = recovery.Recovery(self._members, self._wake)
        self.failure_handler = FailureHandler(self, self._members, self._faults, self._recovery)
        self.errors_named = self._faults.errors_named
        workers = range(cluster.num_workers)
        lives = [self._members.life(Task("worker", worker)) for worker in workers]
        self._own = OwnQueues(resources or Resources(cluster.num_workers), lives)
        self._queue: collections.deque = collections.deque()
        self._round = Round()
        self._stopped = False
        # A coordinator that is collected stops the queue. The garbage collector may run at any
        # line, also while the same thread holds the lock.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._settled = threading.Condition(self._lock)
        self._resized = threading.Condition(self._lock)
        self._held = Held(self._members, self._faults, self._lock, self._run_again)
        self._here = threading.local()  # `lane`: that of the present thread, if it is a lane's.
        self._idle = 0
        # What is scheduled while a `join` waits, waits for it.
        self._joining = threading.Lock()

    # The chief's side.

    def put(self, closure: Queued) -> None:
        """Queues a closure for any worker; blocks while the queue is full.

        Raises:
          Exception: the error of an earlier closure.
        """
        with self._joining, self._lock:
            self._raise_pending()
            if len(self._queue) >= _LIMIT:
                self._wait(self._room, lambda: len(self._queue) < _LIMIT)
                self._raise_pending()
            self._queue.append(closure)
            self.used = True
            _tf.set_gauge("queued_closures", len(self._queue))
            if self._idle:
                self._work.notify()

    def put_on(self, worker: int, closure: Queued, joined: bool = False) -> None:
        """Queues a closure for one worker, before all closures that any worker may run.

        Args:
          worker: index of the worker.
          closure: the closure.
          joined: whether `join` waits for it, and raises its error.
        """
        with self._lock:
            closure.worker = worker
            self.used = True
            if joined:
                self._begin(closure)
            self._own.put(worker, closure)
            self._work.notify_all()

    def make(self, worker: int, resource: Resource) -> None:
        """Queues the closure of a new per-worker value for its worker."""
        with self._lock:
            self._own.make(worker, resource)
            self.put_on(worker, resource.closure)

    @property
    def manager(self) -> _tf.CancellationManager:
        """What cancels the closures that are scheduled now, if one of them fails."""
        return self._round.manager

    @property
    def inflight(self) -> int:
        """Number of closures that run."""
        return self._round.inflight

    @property
    def error(self) -> BaseException | None:
        """The error of a closure, from its failure until it is raised; None if there is none."""
        return self._round.error

    def join(self) -> None:
        """Waits until no closure waits or runs, and brings the results that somebody holds.

        Raises:
          Exception: the error of a closure. The closures that ran or waited have been cancelled.
        """
        with self._joining:
            while True:
                with self._lock:
                    self._wait(self._settled, self._is_settled)
                if self._is_brought():
                    return

    def done(self) -> bool:
        """Returns whether no closure waits or runs, and brings results and raises like `join`."""
        with self._lock:
            if self._round.error is None and not self._is_settled():
                if self._look() is not None:
                    self._raise_pending()
                return False
        return self._is_brought()

    def _is_brought(self) -> bool:
        """Brings the results that somebody holds; returns whether no closure is to run again."""
        with self._lock:
            error = self._pending()
        failed = self._held.bring_all(repeat=error is None)
        with self._lock:
            if error is not None:
                raise error  # The results of this round that were lost are another round's matter.
            for value, reason in failed:
                value._set(None, reason)
                self._fail(self._round, reason)
            self._raise_pending()
            return self._is_settled()

    def bring(self, values: list[RemoteValue]) -> None:
        """Brings results that are there, or has those computed again that are lost.

        Raises:
          Exception: the reason why neither is possible.
        """
        for _, reason in self._held.bring(values):
            raise reason

    def wait_for(self, value: RemoteValue) -> None:
        """Waits until the value or its error is there.

        Raises:
          TaskLost: a ps is lost, or all workers are, or the worker whose per-worker value it is.
          tf.errors.UnavailableError: a lane waits, for what its worker makes, and the worker is
            lost. What the lane runs can run elsewhere.
          tf.errors.CancelledError: the coordinator has stopped.
        """
        lane = getattr(self._here, "lane", None)
        with self._lock:
            ready = value._waiter()
        while not ready.wait(_LOOK):
            with self._lock:
                if value._ready:
                    return
                ready = value._waiter()  # The value may be made again meanwhile.
                lost = self._look()
                lost = self._why_in_vain(value, lane) or lost
            if lost is not None:
                raise lost

    def _why_in_vain(self, value: RemoteValue, lane: ClosureLane | None) -> BaseException | None:
        """Returns the error if a lane, or the program, waits for what nobody makes at present."""
        if self._stopped:
            return faults.cancelled(_STOPPED)
        if lane is None:
            return self._why_not_made(value)
        task = Task("worker", lane.worker)
        if self._members.end_of(task, lane.life) is None:
            return None
        return tf.errors.UnavailableError(None, None, f"{task} is lost; it was to make an argument")

    def _why_not_made(self, value: RemoteValue) -> BaseException | None:
        """Returns the error if the worker of a per-worker value is lost; nobody else can make it.

        A program that reads all workers' values need not wait for one that stays away.
        """
        if not isinstance(value, Resource):
            return None
        task = Task("worker", value.closure.worker)
        loss = self._members.loss(task)
        return None if loss is None else self._faults.of_value([task], loss.why)

    def start(self) -> None:
        """Starts all threads: the lanes and that of the failure handler."""
        self.start_lanes()
        self.failure_handler.start()

    def start_lanes(self) -> None:
        """Starts the lanes that are missing. The coordinator calls this when there is work."""
        wanted = self.lanes_per_worker * self.cluster.num_workers
        if len(self._lanes) >= wanted:
            return
        with self._lock:
            while len(self._lanes) < wanted:
                index, worker = divmod(len(self._lanes), self.cluster.num_workers)
                lane = ClosureLane(worker, self, index)
                self._lanes.append(lane)
                lane.start()

    def resize(self, lanes_per_worker: int) -> None:
        """Sets how many lanes of a worker may work. The lanes beyond that number pause."""
        with self._lock:
            self.lanes_per_worker = lanes_per_worker
            self._work.notify_all()
            self._resized.notify_all()

    def stop(self) -> None:
        """Cancels everything and ends the threads."""
        self.failure_handler.stop()
        with self._lock:
            self._stopped = True
            self._cancel_waiting()
            for closure in self._own.clear():
                if (output := closure.output()) is not None:
                    output._set(None, faults.cancelled(_STOPPED))
                if closure.round is not None:
                    closure.round.inflight -= 1
            self._round.manager.start_cancel()
            self._work.notify_all()
            self._resized.notify_all()
            self._settled.notify_all()

    # The lanes' side.

    def take(self, lane: ClosureLane) -> Queued | None:
        """Waits for the next closure for a lane; None when it is all over."""
        self._here.lane = lane
        with self._lock:
            while not self._stopped:
                # Before it is used, a lost worker is the business of those who use the cluster.
                if lane.index >= self.lanes_per_worker or (self.used and self._is_away(lane)):
                    if self._queue:
                        self._work.notify()  # What woke this lane is another lane's now.
                    self._resized.wait()
                    continue
                if (own := self._own.take(lane.worker)) is not None:
                    return own
                if self._queue:
                    if len(self._queue) == _LIMIT:
                        self._room.notify()
                    closure = self._queue.popleft()
                    _tf.set_gauge("queued_closures", len(self._queue))
                    self._begin(closure)
                    return closure
                self._idle += 1
                try:
                    self._work.wait()
                finally:
                    self._idle -= 1
            return None

    def finished(
        self,
        lane: ClosureLane,
        closure: Queued,
        result: Any,
        error: BaseException | None,
    ) -> None:
        """Takes note of a closure's result or error, or puts it back if its worker is lost."""
        its_round = closure.round
        if error is not None and not _was_cancelled(error, its_round):
            judged = self._judged(lane, closure, error)
            if judged is None and self._put_back(lane, closure):
                return
            error = judged or faults.not_repeated()
        with self._lock:
            if self._own.is_over(lane.worker, lane.life, closure):
                return
            output = closure.output()
            if error is None and its_round is not None and isinstance(output, RemoteValue):
                self._held.add(output, Source(closure, lane.worker, lane.life), result)
            if output is not None:
                output._set(result, error, lane.worker)
            if its_round is None:
                return
            its_round.inflight -= 1
            _tf.set_gauge("inflight_closures", its_round.inflight)
            if error is not None:
                self._fail(its_round, error)
            if not its_round.inflight and not self._queue:
                self._settled.notify_all()
        self._held.relieve(lane.worker)

    def _judged(
        self, lane: ClosureLane, closure: Queued, error: BaseException
    ) -> BaseException | None:
        """Begins the recovery of who is lost; returns the error if the closure is to fail."""
        try:
            judged = self._faults.judged(lane.worker, error, closure.repeats)
            self._recovery.begin()
        except Exception as e:  # It would end the lane's thread, and nobody would tell the closure.
            e.__cause__ = error
            return e
        return judged

    def _put_back(self, lane: ClosureLane, closure: Queued) -> bool:
        """Puts a closure back into its queue, unless an error has ended its round."""
        with self._lock:
            its_round = closure.round
            if self._own.is_over(lane.worker, lane.life, closure):
                return True  # The worker is back, and the closure was queued with all others.
            if self._stopped:
                return False
            if its_round is not None and (its_round is not self._round or its_round.error):
                return False
            if closure.worker is None:
                # At the tail, as TensorFlow does: a function that brings workers down comes last.
                self._queue.append(closure)
                self._round.inflight -= 1
                _tf.set_gauge("queued_closures", len(self._queue))
                _tf.set_gauge("inflight_closures", self._round.inflight)
            else:
                self._own.put_back(closure.worker, closure)
            self._work.notify_all()
            return True

    def _run_again(self, closure: Queued) -> bool:
        """Queues a closure whose result is lost, unless an error has ended the round."""
        self._recovery.begin()
        with self._lock:
            if self._stopped or self._round.error is not None:
                return False
            self._queue.append(closure)
            _tf.set_gauge("queued_closures", len(self._queue))
            self._work.notify()
            return True

    def _wake(self) -> None:
        """Lets the lanes look whether their workers are back, and make per-worker values anew."""
        with self._lock:
            self._work.notify_all()
            self._resized.notify_all()

    # With the lock held.

    def _is_away(self, lane: ClosureLane) -> bool:
        """Whether a lane's worker is lost; if it has come back, prepares it for calls."""
        task = Task("worker", lane.worker)
        is_lost = self._members.loss(task) is not None  # Asked before the life, as in `end_of`.
        life = self._members.life(task)
        if lane.life != life:
            lane.renew(life)
        if self._own.renew(lane.worker, life):
            self._work.notify_all()
        if is_lost:
            self._recovery.begin()
        return is_lost

    def _begin(self, closure: Queued) -> None:
        closure.round = self._round
        self._round.inflight += 1
        _tf.set_gauge("inflight_closures", self._round.inflight)

    def _is_settled(self) -> bool:
        return not self._queue and not self._round.inflight

    def _fail(self, its_round: Round, error: BaseException) -> None:
        if its_round is self._round and its_round.error is None:
            its_round.error = error
            self._cancel_waiting()
            self._settled.notify_all()

    def _cancel_waiting(self) -> None:
        while self._queue:
            output = self._queue.popleft().output()
            if output is not None:
                output._set(None, faults.cancelled())
        self._room.notify_all()

    def _raise_pending(self) -> None:
        if (error := self._pending()) is not None:
            raise error

    def _pending(self) -> BaseException | None:
        """Returns the error of this round and begins another one; None if there is no error."""
        if self._round.error is None:
            return None
        failed = self._round
        failed.manager.start_cancel()
        deadline = time.monotonic() + health.DRAIN
        while failed.inflight and time.monotonic() < deadline:
            self._settled.wait(deadline - time.monotonic())
        # What a lost task was doing may never return; it belongs to its round.
        if self._round is not failed:
            return None
        self._round = Round()
        return failed.error

    def _wait(self, condition: threading.Condition, reached: Callable[[], bool]) -> None:
        """Waits until `reached()`, or until there is an error to raise."""
        while not reached() and self._round.error is None:
            self._members.attend()
            if not condition.wait(_LOOK):
                self._look()

    def _look(self) -> BaseException | None:
        """Has the servers asked; returns the error if nothing can go on."""
        self._members.attend()
        lost = self._members.lost()
        if not lost and self._recovery.error is None:
            return None
        self._recovery.begin()
        error = (
            self._recovery.error
            or self._faults.lost_ps(lost, self._round.begun)
            or recovery.is_waited_too_long(self._members, recovery.LIMIT)
        )
        if error is None:
            return None
        unavailable = failures.unavailable(error) if isinstance(error, errors.TaskLost) else error
        self._fail(self._round, unavailable)
        return unavailable


def _was_cancelled(error: BaseException, its_round: Round | None) -> bool:
    """Whether the chief itself ended the call."""
    cancelled = its_round is not None and its_round.manager.is_cancelled
    return cancelled and isinstance(error, tf.errors.CancelledError)
