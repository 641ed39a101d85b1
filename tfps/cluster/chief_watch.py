"""What a server concludes from what it sees of its chief: plain arithmetic, with a clock given."""

from tfps.cluster.greeting import Answer

# s without an answer after which a worker takes itself for cut off. By then the chief has given up
# on the worker, and its batches go to others.
LEASE = 15.0

# s for which a parameter server keeps its memory without its chief: as long as the chief waits for
# a silent parameter server.
PS_TIMEOUT = 60.0

# s for which the chief's host has to say that no process listens, until the chief counts as dead.
_GONE = 4.0


class ChiefWatch:
    """Whether a server's memory is still of use to a chief.

    It is not when the chief died, when this server and the chief have not seen each other for the
    lease, or when this process was frozen for that long: the chief then goes on without it.

    Attributes:
      seen: whether the chief has ever answered.
    """

    def __init__(self, lease: float, now: float):
        """Begins to watch.

        Args:
          lease: s that the chief may be silent.
          now: the present time in s, of a clock that goes on while this process is frozen.
        """
        self.seen = False
        self._lease = lease
        self._looked = self._last = now
        self._gone_since: float | None = None

    def note(self, answer: Answer, now: float) -> str | None:
        """Takes note of what came of a question to the chief.

        Args:
          answer: the answer. The server asks every few seconds.
          now: the present time in s.

        Returns:
          Why the server's memory is of no use any more, in words that follow the chief's address;
          None if it still is, or if no chief has been seen.
        """
        frozen, self._looked = now - self._looked, now
        if frozen > self._lease and self.seen:
            return f"has gone on without this server, which was frozen for {frozen:.0f} s"
        if answer is Answer.ANSWERS:
            self.seen, self._last, self._gone_since = True, now, None
            return None
        if not self.seen:
            return None
        if answer is Answer.SILENT:
            self._gone_since = None
        elif self._gone_since is None:
            self._gone_since = now
        elif now - self._gone_since >= _GONE:
            return "died without a word"
        if now - self._last > self._lease:
            return f"has not answered for {now - self._last:.0f} s"
        return None
