"""A process on a host: its orders and its answers, which are lines of JSON (`lines.py`)."""

import collections
import contextlib
import json
import queue
import signal
import subprocess
import threading


class Failed(Exception):
    """A system did not do what it was told; the message says which and why."""


class Refused(Failed):
    """One system failed, but its program lives and may run other systems."""


class Program:
    """A process on a host."""

    def __init__(
        self, name: str, command: list[str], environ: dict, log: str, ready: bool, at_mark
    ):
        """Starts it.

        Args:
          name: for messages, such as `stock worker0`.
          command: the command line.
          environ: of the process.
          log: file for what it has to say besides answers.
          ready: whether it says so when it is (`lines.serve`).
          at_mark: called when it marks a moment (`lines.mark`); results are in `marks`.
        """
        self.name, self.log, self.says_ready = name, log, ready
        self.marks: list = []
        self._at_mark = at_mark
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        with open(log, "w") as file:
            self._process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                # Ctrl-C must reach only the main process, which ends all other processes in order.
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            if not line.startswith("{"):
                continue
            message = json.loads(line)
            if "mark" in message:
                self.marks.append(self._at_mark())
            else:
                self._answers.put(message)
        self._answers.put(None)

    def tell(self, message: dict) -> None:
        self.marks = []
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"{self.name} is gone; {self._last_words()}") from None

    def answer(self, timeout: float, what: str) -> dict:
        """Its next answer.

        Raises:
          Failed: it reports an error, ended, or took longer than `timeout` s for `what`.
        """
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise Failed(
                f"{self.name}: no answer to '{what}' within {timeout:g} s; {self._last_words()}"
            ) from None
        if answer is None:
            code = self._process.wait()
            raise Failed(f"{self.name} ended with {code} during '{what}'; {self._last_words()}")
        if "error" in answer:
            raise Refused(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        with open(self.log, errors="replace") as file:
            lines = collections.deque((line for line in file if line.strip()), maxlen=1)
        return f"its log {self.log} ends in: {lines[0].strip()[:200] if lines else '(nothing)'}"

    def end(self) -> None:
        """Closes the program's input, which ends it; kills the program if that takes over 2 s."""
        process = self._process
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
