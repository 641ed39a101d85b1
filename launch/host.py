"""The connection to the agent of one host: lines of JSON in both directions."""

import collections
import contextlib
import itertools
import json
import queue
import subprocess
import threading
import time
from typing import Any

from launch import errors
from launch.launcher import Event, Exited, HostLost, Line, Told
from launch.machine import Machine, source

CONNECT = 10.0  # s that a host may take to start its agent
ANSWER = 8.0  # s that an agent may take to answer
PROBE = 18.0  # s that it may take to find out about its host
RESERVE = 12.0  # s that it may take if tasks of an agent before it still have to end
HURRY = 1.0  # s that it may still take when the launcher is told to end
PING = 2.0  # s between two pings
PATIENCE = 20.0  # s of silence after which the launcher and a remote agent give each other up
BACKLOG = 10_000  # events that wait for the supervisor before agents are left unread
_MARK = "\x1e"  # As in agent.py.
_ENDS = "it has not answered yet, and the launcher is told to end"


class Host:
    """The connection to one agent.

    Attributes:
      machine: where it is.
      lost: why the host counts as lost, or None.
      heard: when something last came from it (s, monotonic).
      facts: what the agent has found out about the host; see `agent/facts.py`.
      hurried: whether the launcher is told to end, so that nobody waits for this host any more.
      connection: the number of the present or last connection, from 1; 0 before the first.
    """

    def __init__(self, machine: Machine, events: "queue.Queue[Event]"):
        """Does not connect yet.

        Args:
          machine: where to start the agent.
          events: where lines, exits and the host's loss are put.
        """
        self.machine, self._events = machine, events
        self.lost: str | None = "it was not asked yet"
        self.heard = time.monotonic()
        self.facts: dict[str, Any] = {}
        self.hurried = False
        self.connection = 0
        self.ports: list[int] = []
        self._numbers = itertools.count()
        self._closing = False
        self._hello = threading.Event()

    def connect(self, timeout: float = CONNECT) -> None:
        """Starts the agent.

        Raises:
          HostError: it did not come within `timeout` seconds, or the launcher is told to end; names
            the host and the cause.
        """
        self._answers: dict[int, queue.Queue] = collections.defaultdict(queue.Queue)
        self._hello = threading.Event()
        self._noise: collections.deque[str] = collections.deque(maxlen=5)
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._closing = False
        try:
            self._process = subprocess.Popen(
                self.machine.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Of a session of its own: Ctrl-C on the terminal is for the launcher to pass on.
                start_new_session=True,
            )
        except OSError as e:
            raise errors.HostError(
                f"host {self.machine.name}: cannot run {self.machine.command[0]}: "
                f"{(e.strerror or str(e)).lower()}; install it, or name another Python (--python)"
            ) from e
        self.connection += 1
        self.lost, self.heard = None, time.monotonic()
        for target in (self._write, self._read, self._read_noise):
            threading.Thread(target=target, args=(self._process,), daemon=True).start()
        self._outbox.put(source())
        deadline = time.monotonic() + timeout
        while not self._hello.wait(0.05) and self.lost is None and time.monotonic() < deadline:
            if self.hurried:
                break
        if not self._hello.is_set():
            why = self.lost or (_ENDS if self.hurried else f"no answer within {timeout:g} s")
            self.abandon()
            raise errors.HostError(f"host {self.machine.name}: {why}")
        self.tell("ping", patience=PATIENCE if self.machine.remote else None)

    @property
    def ready(self) -> bool:
        """Whether the agent is there and listens."""
        return self.lost is None and self._hello.is_set()

    # Threads of the connection.

    def _write(self, process: subprocess.Popen) -> None:
        assert process.stdin is not None
        outbox = self._outbox
        try:
            while (message := outbox.get()) is not None:
                process.stdin.write(message)
                process.stdin.flush()
        except OSError:
            pass  # The reader notices, too, and says why.
        with contextlib.suppress(OSError):
            process.stdin.close()

    def _read(self, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        for data in process.stdout:
            _before, mark, message = data.decode("utf-8", "replace").rpartition(_MARK)
            if not mark:
                self._noise.append(message.strip())
                continue
            if process is not self._process or self.lost is not None:
                break  # What ran there is lost; its ends are not those of what is started next.
            self.heard = time.monotonic()
            self._receive(json.loads(message))
            while self._events.qsize() > BACKLOG and self.lost is None:
                time.sleep(0.01)
                self.heard = time.monotonic()  # The silence is ours.
        status = process.wait()
        time.sleep(0.1)  # For the last words on standard error.
        if process is self._process and not self._closing:
            self.lose(self._cause(status))

    def _read_noise(self, process: subprocess.Popen) -> None:
        assert process.stderr is not None
        noise = self._noise
        for data in process.stderr:
            if text := data.decode("utf-8", "replace").strip():
                noise.append(text)

    def _cause(self, status: int) -> str:
        said = "; ".join(self._noise) or "it said nothing"
        if status in (126, 127) and not self._hello.is_set():
            return (
                f"there is no {self.machine.python} that runs ({said}); install it there, or name "
                "another Python (--python)"
            )
        return f"its connection ended with {status}: {said}"

    def _receive(self, message: dict[str, Any]) -> None:
        if "line" in message:
            self._events.put(Line(*message["line"]))
        elif "exited" in message:
            self._events.put(Exited(*message["exited"]))
        elif "told" in message:
            self._events.put(Told(self.machine.name, message["told"]))
        elif "hello" in message:
            self._hello.set()
        elif (answer := self._answers.get(message["id"])) is not None:
            answer.put(message)

    # For the launcher.

    def lose(self, why: str) -> None:
        """Counts the host as lost, once, and tells of it."""
        if self.lost is None:
            self.lost = why
            if self._hello.is_set():
                silent = time.monotonic() - self.heard
                self._events.put(HostLost(self.machine.name, why, silent, self.connection))
            self.abandon()

    def abandon(self) -> None:
        """Ends the connection at once."""
        self.lost = self.lost or "it was given up"
        self._closing = True
        self._outbox.put(None)
        if self._process.poll() is None:
            self._process.kill()

    def tell(self, what: str, **values: Any) -> None:
        """Sends a message to which no answer is waited for."""
        self._send(what, values)

    def ask(self, what: str, timeout: float = ANSWER, **values: Any) -> Any:
        """Sends a message and returns the answer.

        Raises:
          HostError: there is no answer within `timeout` s, or the agent could not do it. There is
            none within `HURRY` s either when the launcher is told to end.
        """
        number = self._send(what, values, answered=True)
        deadline = time.monotonic() + timeout
        try:
            while True:
                try:
                    answer = self._answers[number].get(timeout=0.2)
                    break
                except queue.Empty:
                    if self.hurried:  # A host that lives still says what it has done.
                        deadline = min(deadline, time.monotonic() + HURRY)
                    if self.lost is not None or time.monotonic() > deadline:
                        silent = _ENDS if self.hurried else f"no answer within {timeout:g} s"
                        why = self.lost or silent
                        raise errors.HostError(f"host {self.machine.name}: {why}") from None
        finally:
            del self._answers[number]
        if "error" in answer:
            raise errors.HostError(f"host {self.machine.name}: {answer['error']}")
        return answer["result"]

    def _send(self, what: str, values: dict[str, Any], answered: bool = False) -> int:
        number = next(self._numbers)
        if answered:
            self._answers[number] = queue.Queue()
        message = {"id": number, "do": what, **values}
        self._outbox.put(json.dumps(message).encode() + b"\n")
        return number

    def close(self, deadline: float) -> None:
        """Ends the agent, and waits for it until `deadline` (s, monotonic)."""
        if self.lost is None:
            self._closing = True
            self.tell("leave", grace=1.0)
            self._outbox.put(None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.1, deadline - time.monotonic()))
            self.abandon()
