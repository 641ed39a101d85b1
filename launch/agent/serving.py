"""The agent's loop: between the launcher, by JSON on standard input and output, and the tasks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import socket
import time

from launch.agent import facts
from launch.agent.children import Child, start
from launch.agent.keeper import ORPHANED_GRACE
from launch.agent.ports import keep_port, listen, unreachable
from launch.agent.processes import (
    Wakeups,
    become_subreaper,
    descendants,
    exit_status,
    kill_below,
    reap,
)

MARK = b"\x1e"  # It begins each message to the launcher: a login shell may write before it.
FULL = 8 * 1024 * 1024  # bytes that wait for the launcher before tasks' output is left in its pipes
STUCK = 5.0  # s after which a launcher that reads nothing loses lines, so that no task has to wait


class Agent:
    """Serves the launcher until it says goodbye, or is gone."""

    def __init__(self) -> None:
        """Makes this process an agent."""
        become_subreaper()
        self._wakeups = Wakeups(signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        for fd in (0, 1, 2):
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        self._said = b""  # What of the launcher's messages has come.
        self._unsent = bytearray()  # What the launcher has not read yet.
        self._read_at = time.monotonic()  # When the launcher has last read something.
        self._lost_lines = 0
        self._children: dict[str, Child] = {}
        self._ports: dict[int, socket.socket] = {}
        self._trials: list[socket.socket] = []  # They listen while hosts try to reach one another.
        self._patience: float | None = (
            None  # s that may pass between two messages; None if a pipe tells the end
        )
        self._heard = time.monotonic()
        self._deadline: float | None = None  # When the agent ends, whatever is left.

    def run(self) -> None:
        """Runs until all is over."""
        self._send({"hello": os.getpid()})
        try:
            while self._goes_on():
                self._turn()
        finally:
            kill_below(os.getpid())
        deadline = time.monotonic() + 2.0
        while self._unsent and time.monotonic() < deadline:
            select.select([], [1], [], 0.1)
            self._flush()

    def _goes_on(self):
        if self._deadline is None:
            return True
        return bool(self._children) and time.monotonic() < self._deadline

    def _leave(self, grace):
        """Ends all tasks, and then the agent."""
        if self._deadline is None:
            self._deadline = time.monotonic() + grace + 2.0
        for child in self._children.values():
            child.tell("stop", grace)

    def _turn(self):
        """Waits for something to happen, a second at most, and does what follows."""
        held_up = len(self._unsent) > FULL
        reads = [self._wakeups.fd] + [c.status for c in self._children.values()]
        if self._deadline is None:
            reads.append(0)
        if not held_up or time.monotonic() - self._read_at > STUCK:
            reads += [c.output for c in self._children.values() if c.output is not None]
        soon = held_up or any(c.lines.waits for c in self._children.values())
        ready, writable, _ = select.select(
            reads, [1] if self._unsent else [], [], 0.2 if soon else 1.0
        )
        if writable:
            self._flush()
        if self._wakeups.fd in ready:
            self._on_signals()
        if 0 in ready:
            self._hear()
        for child in list(self._children.values()):
            if child.output in ready:
                self._read(child)
            self._pass_on(child, child.lines.waited(time.monotonic()))
            if child.status in ready:
                self._on_end(child)
        if self._patience and time.monotonic() - self._heard > self._patience:
            self._leave(ORPHANED_GRACE)

    def _on_signals(self):
        # The launcher decides who ends first. If it is gone, its pipe or its silence says so.
        for signum in set(self._wakeups.taken()) - {signal.SIGCHLD}:
            self._send({"told": int(signum)})
        reap(spared=[child.pid for child in self._children.values()])

    # What comes from tasks.

    def _read(self, child):
        try:
            data = os.read(child.output, 1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            os.close(child.output)
            child.output = None
            return False
        self._pass_on(child, child.lines.feed(data, time.monotonic()))
        return True

    def _pass_on(self, child, lines):
        for text, end in lines:
            if len(self._unsent) > 2 * FULL:
                self._lost_lines += 1
                continue
            if self._lost_lines:
                note = f"({self._lost_lines} lines were dropped: the launcher did not read them)"
                self._lost_lines = 0
                self._send({"line": [child.name, note, "\n"]})
            self._send({"line": [child.name, text.decode("utf-8", "replace"), end]})

    def _on_end(self, child):
        try:
            said = os.read(child.status, 100)
        except OSError:
            said = b""
        _, status = os.waitpid(child.pid, 0)
        code = int(said) if said else exit_status(status)
        if not said:  # The keeper was killed, so what it kept is below this process now.
            kill_below(os.getpid(), spared=self._keepers(but=child))
        deadline = time.monotonic() + 1.0
        while child.output is not None and time.monotonic() < deadline:
            if not select.select([child.output], [], [], 0.1)[0] or not self._read(child):
                break
        self._pass_on(child, child.lines.rest())
        for fd in (child.control, child.status, child.output):
            if fd is not None:
                os.close(fd)
        del self._children[child.name]
        self._send({"exited": [child.name, code]})

    def _keepers(self, but):
        """Ids of the other keepers, and of all that is below them."""
        pids = [c.pid for c in self._children.values() if c is not but]
        return set(pids).union(*(descendants(pid) for pid in pids))

    # What comes from, and goes to, the launcher.

    def _hear(self):
        try:
            data = os.read(0, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._leave(ORPHANED_GRACE)
            return
        self._heard = time.monotonic()
        *messages, self._said = (self._said + data).split(b"\n")
        for message in messages:
            self._answer(json.loads(message.decode()))

    def _answer(self, request):
        try:
            result = getattr(self, "_do_" + request["do"])(request)
        except Exception as e:
            why = e.strerror if isinstance(e, OSError) and e.strerror else repr(e)
            self._send({"id": request["id"], "error": why})
        else:
            self._send({"id": request["id"], "result": result})

    def _send(self, message):
        if not self._unsent:
            self._read_at = time.monotonic()
        self._unsent += MARK + json.dumps(message).encode() + b"\n"
        self._flush()

    def _flush(self):
        try:
            while self._unsent:
                sent = os.write(1, self._unsent[: 1 << 16])
                del self._unsent[:sent]
                self._read_at = time.monotonic()
        except BlockingIOError:
            pass
        except OSError as e:
            if e.errno not in (errno.EPIPE, errno.EIO, errno.ECONNRESET):
                raise
            self._unsent.clear()
            self._leave(ORPHANED_GRACE)

    # What the launcher can ask.

    def _do_ping(self, request):
        self._patience = request["patience"]

    def _do_probe(self, request):
        return facts.probe(request)

    def _do_reserve(self, request):
        """Keeps ports: those that are named, or so many, from a range if there is one.

        On a port that is named, a task of an agent before this one may still listen, whose
        connection to the launcher was lost. Such a task ends soon.
        """
        deadline = time.monotonic() + ORPHANED_GRACE + 3.0
        for port in request.get("ports", ()):
            while port not in self._ports:
                try:
                    self._ports[port] = keep_port(port)
                except OSError as e:
                    if time.monotonic() > deadline:
                        raise OSError(e.errno, f"port {port}: {e.strerror}") from e
                    time.sleep(0.2)
        found = list(request.get("ports", ()))
        candidates = iter(request.get("among") or ())
        while len(found) < request.get("count", 0):
            port = next(candidates, None) if request.get("among") else 0
            if port is None:
                among = request["among"]
                raise OSError(
                    errno.EADDRINUSE,
                    f"only {len(found)} ports from {among[0]} to {among[-1]} are free, but "
                    f"{request['count']} are needed; give a larger range",
                )
            try:
                held = keep_port(port)
            except OSError:
                if port == 0:
                    raise
                continue
            number = held.getsockname()[1]
            if number in self._ports:
                held.close()
                continue
            self._ports[number] = held
            found.append(number)
        return found

    def _do_listen(self, request):
        """Listens on ports for a while; no ports for the end of it."""
        while self._trials:
            self._trials.pop().close()
        self._trials += [listen(port) for port in request["ports"]]

    def _do_reach(self, request):
        """Returns to which addresses no connection is made, and why."""
        return unreachable(request["addresses"])

    def _do_start(self, request):
        """Starts a task; one that was asked for before, and runs, is left as it is.

        The launcher asks again if it has not had the answer in time.
        """
        child = self._children.get(request["task"])
        if child is None:
            self._children[request["task"]] = start(request["task"], request)
        elif child.is_stopping or {**child.request, "id": request["id"]} != request:
            ends = "was told to end, and has not yet" if child.is_stopping else "runs already"
            raise ValueError("{} {}".format(request["task"], ends))

    def _do_signal(self, request):
        if request["task"] in self._children:
            self._children[request["task"]].tell("signal", request["signum"])

    def _do_stop(self, request):
        for child in self._children.values():
            child.tell("stop", request["grace"])

    def _do_leave(self, request):
        self._leave(request["grace"])
