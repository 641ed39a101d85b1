"""The parameter servers as actors, seen from the chief: their loops, and the lives of workers.

A life of a worker lasts from its start to the first call that fails. A letter of an earlier life
changes nothing, however late it arrives (a worker that was frozen, and thaws).
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfps import errors
from tfps.cluster.devices import worker_device
from tfps.cluster.members import PS_PATIENCE
from tfps.cluster.remote_function import RemoteFunction
from tfps.cluster.server_calls import ServerCall
from tfps.store import mailbox
from tfps.store.handles import ServerHandles
from tfps.store.mailbox import FENCE, HEADER, STOP, Header, SenderHandles
from tfps.store.push import Pusher
from tfps.store.server_loop import Roll
from tfps.store.views import Views

# s that a ps may take to answer the chief: longer than a silent ps is taken for alive.
_ANSWERS_WITHIN = PS_PATIENCE + 30.0

# s to wait for queues to be deleted after an error.
_DELETED_WITHIN = 5.0

# Queues need names that no other queue of the chief has.
_names = itertools.count()

_COMMAND = {
    "kind": tf.TensorSpec([], tf.int64),
    "worker": tf.TensorSpec([], tf.int64),
    "life": tf.TensorSpec([], tf.int64),
}


class Told(NamedTuple):
    """What a ps says of a worker that is fenced off.

    Attributes:
      last: the unit of the last push that it has of this life, -1 for none.
      repeated: the unit of the last repeat that it has of this life, -1 for none.
      refused: letters of earlier lives that it has refused, since its loop has begun.
    """

    last: int
    repeated: int
    refused: int


class _Commands:
    """Graphs by which the chief sends a ps a letter of its own; ps with letters alike share one."""

    def __init__(self) -> None:
        self._made: dict[tuple[tf.DType, ...], RemoteFunction] = {}

    def of(self, dtypes: Sequence[tf.DType]) -> RemoteFunction:
        """The graph for letters of these dtypes after the header; it is called under the ps."""
        key = tuple(dtypes)
        if key not in self._made:

            def command(inbox, answers, **header):
                return _sent(key, inbox, answers, **header)

            self._made[key] = RemoteFunction(
                command, mailbox.HANDLE, mailbox.HANDLE, numbers=_COMMAND
            )
        return self._made[key]


def _sent(dtypes, inbox, answers, kind, worker, life):
    zero = tf.constant(0, tf.int64)
    header = Header(*[zero] * len(Header._fields))
    header = header._replace(kind=kind, worker=worker, life=life)
    # The loop looks at nothing but the header.
    body = [tf.zeros([0], dtype) for dtype in dtypes]
    put = mailbox.put(inbox, answers, [tf.identity(header.row()), *body])
    with tf.control_dependencies([put]):
        return tf.identity(mailbox.answered(answers))


class _Server:
    """One ps: its inbox, and the loop that runs there."""

    def __init__(self, pusher: Pusher, p: int, commands: _Commands):
        self.p = p
        self._loop = pusher.loop(p)
        self._specs = self._loop.specs
        self.inbox = mailbox.queue(p, [mailbox.HANDLE, HEADER, *self._specs], _name("inbox"))
        self._answers = mailbox.queue(p, [mailbox.ANSWER], _name("answers"))
        self._call = commands.of([s.dtype for s in self._specs])
        self._running: ServerCall | None = None

    def start(
        self,
        handles: ServerHandles,
        lives: Sequence[int],
        failed: Callable[[BaseException], None],
        run: tuple[int, int],
    ) -> None:
        """Starts the loop."""
        nothing: np.ndarray = np.full(len(lives), -1, np.int64)
        roll = Roll(*map(tf.constant, (np.array(lives), nothing, nothing, np.int64(0))))
        loop, inbox = self._loop, self.inbox
        self._running = ServerCall(self.p, lambda: loop(handles, inbox, roll, run), failed)

    def command(self, kind: int, worker: int = 0, life: int = 0) -> ServerCall[tf.Tensor]:
        """Sends a letter of the chief; the call ends with the answer."""
        inbox, answers, call = self.inbox, self._answers, self._call
        return ServerCall(
            self.p, lambda: call(inbox, answers, kind=kind, worker=worker, life=life).numpy()
        )

    def end(self, deadline: float, look: Callable[[], None]) -> None:
        """Waits until the loop has ended."""
        if self._running is not None:
            self._running.result(deadline, "its loop is to end", look)
            self._running = None

    def delete(self) -> None:
        """Deletes the queues; a loop that runs ends with an error."""
        mailbox.delete(self.p, self.inbox)
        mailbox.delete(self.p, self._answers)


class _Life:
    """A life of a worker.

    Attributes:
      sender: what the worker sends with.
    """

    def __init__(self, worker: int, life: int, servers: list[_Server], views: Views):
        with tf.device(worker_device(worker)):
            identity = tf.identity(tf.constant([worker, life], tf.int64))
        self._answers = {
            s.p: mailbox.queue(s.p, [mailbox.ANSWER], _name("answers")) for s in servers
        }
        inboxes = {s.p: s.inbox for s in servers}
        self._views = views
        self.sender = SenderHandles(identity, inboxes, self._answers, views.make(_name("view")))

    def end_on(self, p: int) -> None:
        """Ends the calls on a ps that still wait for an answer."""
        if p in self._answers:
            mailbox.delete(p, self._answers[p])
        self._views.delete_on(p, self.sender.views)

    def forget_on(self, p: int) -> None:
        """Frees the memory of the worker's views on one ps; its next pull is whole."""
        self._views.clear_on(p, self.sender.views)


class Actors:
    """The loops of all ps for one pusher, and the workers' lives.

    The chief calls `start`, then `handles` for each worker, `fence` for each that is lost, and
    `stop`. All of them are called from one thread.
    """

    def __init__(self, pusher: Pusher):
        """Makes the queues.

        Args:
          pusher: of which a step has been traced.
        """
        self._pusher = pusher
        self._is_over = False
        self._look: Callable[[], None] = lambda: None
        self._senders: dict[tuple[int, int], _Life] = {}  # by worker and life
        commands = _Commands()
        self._servers = [_Server(pusher, p, commands) for p in pusher.written_to()]

    def start(
        self,
        lives: Sequence[int],
        failed: Callable[[BaseException], None],
        run: tuple[int, int] = (0, 0),
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the loops.

        Args:
          lives: per worker, the number of its present life. The numbers never go back.
          failed: called with the error by which a loop ended, in some thread.
          run: which run of which chief this is, for the ledger.
          look: called while a ps is waited for; raises an error if one is lost.
        """
        self._look = look
        for server in self._servers:
            server.start(
                self._pusher.handles_on(server.p),
                lives,
                lambda error: None if self._is_over else failed(error),
                run,
            )

    def handles(self, worker: int, life: int) -> ServerHandles:
        """What a life of a worker calls its steps with; made when it is first asked for."""
        key = worker, life
        if key not in self._senders:
            self._senders[key] = _Life(worker, life, self._servers, self._pusher.views)
        return self._pusher.server_handles()._replace(sender=self._senders[key].sender)

    def fence(self, worker: int, life: int) -> dict[int, Told]:
        """Ends the earlier lives of a worker on every ps: none of their letters counts any more.

        Args:
          worker: index.
          life: the worker's next one.

        Returns:
          ps -> what it has of the life that ends. (A ps that pushes do not concern has nothing.)

        Raises:
          TaskLost: a ps is gone.
          StepTimeout: a ps does not answer.
        """
        calls = [s.command(FENCE, worker, life) for s in self._servers]
        deadline = time.monotonic() + _ANSWERS_WITHIN
        found = [c.result(deadline, "fencing off a worker", self._look) for c in calls]
        over = [k for k in self._senders if k[0] == worker and k[1] < life]
        self._end_lives([self._senders.pop(key) for key in over], deadline)
        return {c.ps: Told(*map(int, row)) for c, row in zip(calls, found, strict=True)}

    def stop(self) -> int:
        """Ends the loops, once these have taken in what is in the inboxes.

        Returns:
          How many letters of earlier lives were refused.
        """
        deadline = time.monotonic() + _ANSWERS_WITHIN
        calls = [s.command(STOP) for s in self._servers]
        ended = [c.result(deadline, "ending its loop", self._look) for c in calls]
        told = [Told(*map(int, row)) for row in ended]
        for server in self._servers:
            server.end(deadline, self._look)
        lives, views = list(self._senders.values()), self._pusher.views
        self._on_each(views.servers, lives, lambda life, p: life.forget_on(p), deadline)
        return max((t.refused for t in told), default=0)

    def abort(self) -> None:
        """Ends loops and waiting calls after an error; afterwards this object is of no use."""
        self._is_over = True
        deadline = time.monotonic() + _DELETED_WITHIN
        self._end_lives(list(self._senders.values()), deadline)
        calls = [ServerCall(s.p, s.delete) for s in self._servers]
        for call in calls:
            # What was on a ps that is lost is gone anyway.
            with contextlib.suppress(tf.errors.OpError, errors.StepTimeout):
                call.result(deadline, "deleting its queues")

    def _end_lives(self, lives: Sequence[_Life], deadline: float) -> None:
        """Ends the calls of some lives that still wait for an answer."""
        everywhere = {*self._pusher.views.servers, *(s.p for s in self._servers)}
        self._on_each(everywhere, lives, lambda life, p: life.end_on(p), deadline)

    @staticmethod
    def _on_each(
        servers: Collection[int],
        lives: Sequence[_Life],
        act: Callable[[_Life, int], None],
        deadline: float,
    ) -> None:
        """Does something to lives on each of these servers; a lost ps is passed over."""

        def on(p):
            for life in lives:
                act(life, p)

        for call in [ServerCall(p, functools.partial(on, p)) for p in servers]:
            with contextlib.suppress(tf.errors.OpError, errors.StepTimeout):
                call.result(deadline, "letting go of what workers have there")


def _name(kind: str) -> str:
    return f"tfps_{kind}_{next(_names)}"
