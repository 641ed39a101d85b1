"""Cuts what a task writes into lines; progress bars and lines without an end are among it."""

from __future__ import annotations

import re

LONGEST = 64 * 1024  # bytes of a line that are kept before they are passed on without its end
PATIENCE = 1.0  # s after which the beginning of a line is passed on; a bar is shown as often


class Lines:
    """Cuts what a task writes into lines: pairs of the text (bytes) and what ended it.

    A text that a carriage return ends will be overwritten. Of such texts one is passed on each
    second, and the last one.
    """

    _END = re.compile(rb"\r\n|\n|\r(?=[^\n])")

    def __init__(self) -> None:
        """Begins at the beginning of a line."""
        self._kept = b""
        self._bar: bytes | None = None
        self._bar_shown = self._since = -PATIENCE

    def feed(self, data: bytes, now: float) -> list[tuple[bytes, str]]:
        """Returns the lines that `data` completes at time `now` (s)."""
        found, begin = [], 0
        data = self._kept + data
        for end in self._END.finditer(data):
            text = data[begin : end.start()]
            begin = end.end()
            if end.group() == b"\r":
                self._bar = text or self._bar
                if self._bar is not None and now - self._bar_shown >= PATIENCE:
                    found.append((self._bar, "\r"))
                    self._bar, self._bar_shown = None, now
            else:
                if not text and self._bar:
                    text = self._bar
                self._bar = None
                found.append((text, "\n"))
        rest = data[begin:]
        while len(rest) > LONGEST:
            cut = LONGEST
            while cut > LONGEST - 4 and rest[cut] & 0xC0 == 0x80:  # Within a character of UTF-8.
                cut -= 1
            found.append((rest[:cut], ""))
            rest = rest[cut:]
        self._kept, self._since = rest, now
        return found

    def waited(self, now: float) -> list[tuple[bytes, str]]:
        """Returns the beginning of a line, or a bar, for which nothing has come in a while."""
        if now - self._since < PATIENCE:
            return []
        found = [(self._bar, "\r")] if self._bar else []
        self._bar = None
        if self._kept and self._kept != b"\r":
            found.append((self._kept, ""))
            self._kept = b""
        return found

    @property
    def waits(self) -> bool:
        """Whether something was not passed on yet."""
        return bool(self._bar or self._kept)

    def rest(self) -> list[tuple[bytes, str]]:
        """Returns what was not passed on, when the task has ended."""
        text = self._kept.rstrip(b"\r") or self._bar or b""
        self._kept, self._bar = b"", None
        return [(text, "\n")] if text else []
