"""What a user sees: every line of every task, marked, and last the words of who failed first."""

import collections
import os
import pathlib
import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import BinaryIO

from launch.launcher import Line

LAST = 20  # lines of each task that are kept for the end
WAITING = 10_000  # lines that may wait for a terminal
STUCK = 2.0  # s after which a terminal that takes nothing loses lines: no task has to wait for it

# Colours of a terminal with 16 colours, without black, white and the red of errors.
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_RED, _DIM = 31, 2


def wants_colour(stream: BinaryIO | None, environ: Mapping[str, str] = os.environ) -> bool:
    """Returns whether marks are coloured: on a terminal, unless NO_COLOR is set."""
    if stream is None or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


class Console:
    """Writes to standard output and standard error, in order, in a thread of its own.

    A terminal that is held up (Ctrl-S, a pager) holds up nobody else: after two seconds, lines are
    dropped and counted.
    """

    def __init__(self, out: BinaryIO, err: BinaryIO):
        """Begins to write.

        Args:
          out: where the tasks' lines go.
          err: where the launcher's own lines go.
        """
        self._out, self._err = out, err
        self._waiting: queue.Queue[tuple[BinaryIO, bytes] | None] = queue.Queue(WAITING)
        self._dropped = 0
        self._stuck = False
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def out(self, text: str) -> None:
        """Writes a task's line."""
        self._put(self._out, text)

    def err(self, text: str) -> None:
        """Writes a line of the launcher's own."""
        self._put(self._err, text)

    def _put(self, stream: BinaryIO, text: str) -> None:
        if self._dropped and not self._waiting.full():
            note = f"[launch] {self._dropped} lines were dropped: the terminal did not take them\n"
            self._dropped, self._stuck = 0, False
            self._waiting.put((self._err, note.encode()))
        try:
            # Once it is stuck, no further line waits until it has taken one.
            item = (stream, (text + "\n").encode("utf-8", "replace"))
            self._waiting.put(item, block=not self._stuck, timeout=STUCK)
        except queue.Full:
            self._stuck = True
            self._dropped += 1

    def _write(self) -> None:
        gone: set[int] = set()
        while (item := self._waiting.get()) is not None:
            stream, data = item
            if id(stream) in gone:
                continue
            try:
                stream.write(data)
                if self._waiting.empty():
                    self._out.flush()
                    self._err.flush()
                elif stream is self._err:
                    self._out.flush()
            except (OSError, ValueError):
                gone.add(id(stream))  # Whoever read it has ended; the job goes on.

    def close(self, timeout: float = 5.0) -> None:
        """Writes what waits, for `timeout` seconds at most."""
        try:
            self._waiting.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)


class Output:
    """Shows and keeps what tasks write."""

    def __init__(
        self,
        log_dir: str | None = None,
        out: BinaryIO | None = None,
        err: BinaryIO | None = None,
        colour: tuple[bool, bool] | None = None,
    ):
        """Makes the folder of the logs.

        Args:
          log_dir: a folder with a file for each task; None for none.
          out: where the tasks' lines go; by default standard output.
          err: where the launcher's lines go; by default standard error.
          colour: whether the marks of each are coloured; by default on a terminal.

        Raises:
          OSError: the folder cannot be made.
        """
        out, err = out or sys.stdout.buffer, err or sys.stderr.buffer
        self._console = Console(out, err)
        self._out_coloured, self._err_coloured = colour or (wants_colour(out), wants_colour(err))
        self._folder = pathlib.Path(log_dir) if log_dir else None
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._logs: dict[str, BinaryIO] = {}
        self._last: dict[str, collections.deque[str]] = {}
        self._open: set[str] = set()  # Tasks whose last line goes on.
        self._numbers: dict[str, int] = {}

    def begin(self, task: str, where: str) -> None:
        """Notes that a process of a task begins, at `where`."""
        self._last[task] = collections.deque(maxlen=LAST)
        self._numbers.setdefault(task, len(self._numbers))
        if self._folder:
            if task not in self._logs:
                path = self._folder / f"{task.replace(' ', '-')}.log"
                self._logs[task] = open(path, "ab")  # noqa: SIM115  Closed by `close`.
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            self._log(task, f"=== {when} {task} at {where} ===\n")

    def line(self, line: Line) -> None:
        """Shows what a task has written, and keeps it."""
        self._log(line.task, line.text + ("\n" if line.end else ""))
        goes_on = line.task in self._open
        (self._open.discard if line.end else self._open.add)(line.task)
        if goes_on and not line.text:
            return  # Only the end of what has been shown.
        self._last.setdefault(line.task, collections.deque(maxlen=LAST)).append(line.text)
        self._console.out(f"{self._mark(line.task, self._out_coloured)} {line.text}")

    def _log(self, task: str, text: str) -> None:
        if task in self._logs:
            try:
                self._logs[task].write(text.encode("utf-8", "replace"))
                self._logs[task].flush()
            except OSError as e:
                del self._logs[task]
                self.say(f"the log of {task} ends here: {e}")

    def say(self, text: str, bad: bool = False) -> None:
        """Shows a line of the launcher's own."""
        mark = "[launch]"
        if self._err_coloured:
            mark = f"\x1b[{_RED if bad else _DIM}m{mark}\x1b[0m"
        self._console.err(f"{mark} {text}")

    def show_last(self, task: str) -> None:
        """Shows the last lines of a task's last process again."""
        for text in self._last.get(task, ()):
            self._console.err(f"{self._mark(task, self._err_coloured)} {text}")

    def has_said(self, task: str) -> bool:
        """Returns whether the task's last process has written anything."""
        return bool(self._last.get(task))

    def _mark(self, task: str, coloured: bool) -> str:
        if not coloured:
            return f"[{task}]"
        colour = _COLOURS[self._numbers.setdefault(task, len(self._numbers)) % len(_COLOURS)]
        return f"\x1b[{colour}m[{task}]\x1b[0m"

    def close(self) -> None:
        """Writes what waits, and closes the logs."""
        self._console.close()
        for log in self._logs.values():
            log.close()
