"""The kernel of the simulation: a clock, processes, and resources that jobs share or queue for.

A process is a generator that yields what it waits for: an `Event`, or a number of seconds.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

# What a process yields; `yield` returns nothing.
Process: TypeAlias = "Generator[Event | float, None, None]"

# Simulated seconds below which two moments are one: a clock that counts in floats cannot tell them
# apart after some hours.
_INSTANT = 1e-9


class Event:
    """Something that happens once, and that processes and callbacks may wait for.

    Attributes:
      fired: whether it has happened.
    """

    __slots__ = ("_waiting", "fired")

    def __init__(self) -> None:
        self.fired = False
        self._waiting: list[Callable[[], None]] = []

    def fire(self) -> None:
        """Lets it happen; those who wait go on at once, in the order in which they came."""
        self.fired = True
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def then(self, callback: Callable[[], None]) -> None:
        """Calls back when it has happened; at once if it has happened already."""
        if self.fired:
            callback()
        else:
            self._waiting.append(callback)


def fired() -> Event:
    """An event that has happened already."""
    event = Event()
    event.fired = True
    return event


def all_of(events: Sequence[Event]) -> Event:
    """An event that happens with the last of some events."""
    missing = [e for e in events if not e.fired]
    if not missing:
        return fired()
    if len(missing) == 1:
        return missing[0]
    whole = Event()
    left = len(missing)

    def one() -> None:
        nonlocal left
        left -= 1
        if not left:
            whole.fire()

    for event in missing:
        event.then(one)
    return whole


class Clock:
    """Simulated time, and what is to happen in it.

    Attributes:
      now: seconds since the beginning.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Calls back after some time; of one moment, the call that was set first comes first."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, callback))

    def delay(self, seconds: float) -> Event:
        """An event that happens after some time; one of no time has happened already."""
        if seconds <= 0:
            return fired()
        event = Event()
        self.after(seconds, event.fire)
        return event

    def start(self, process: Process) -> Event:
        """Starts a process; returns the event of its end."""
        end = Event()

        def go_on() -> None:
            try:
                while True:
                    target: Any = next(process)
                    event = target if isinstance(target, Event) else self.delay(target)
                    if not event.fired:
                        event.then(go_on)
                        return
            except StopIteration:
                end.fire()

        go_on()
        return end

    def run(self, until: Callable[[], bool]) -> bool:
        """Lets time pass; returns whether the condition came true, or nothing was left to do."""
        heap, pop = self._heap, heapq.heappop
        while heap:
            if until():
                return True
            self.now, _, callback = pop(heap)
            callback()
        return until()


class Shared:
    """A capacity that all jobs share evenly at every moment: a link, or the cores of a host.

    Every job of weight 1 gets the same rate, at most `most`; a job of weight 2 gets twice that. It
    is processor sharing: jobs come and go in O(log n), by the time that each would have had alone.

    Attributes:
      capacity: units of work in a second; infinite for no limit.
      done: units of all jobs that were begun.
    """

    def __init__(self, clock: Clock, capacity: float, most: float = math.inf):
        """Starts idle; `most` is the rate that a job of weight 1 cannot exceed."""
        self.capacity, self.done = capacity, 0.0
        self._clock, self._most = clock, most
        self._free = math.isinf(min(capacity, most))
        self._jobs: list[tuple[float, int, float, Event]] = []
        self._load = 0.0
        self._virtual = self._last = (
            0.0  # What a job of weight 1 would have had so far; since when.
        )
        self._wakes = math.inf
        self._count = 0

    def work(self, amount: float, weight: float = 1.0) -> Event:
        """Begins a job; returns the event of its end."""
        self.done += amount
        if amount <= 0 or self._free:
            return fired()
        self._advance()
        event = Event()
        self._count += 1
        heapq.heappush(self._jobs, (self._virtual + amount / weight, self._count, weight, event))
        self._load += weight
        self._wake()
        return event

    def _rate(self) -> float:
        return min(self._most, self.capacity / self._load)

    def _advance(self) -> None:
        now = self._clock.now
        if self._jobs:
            self._virtual += (now - self._last) * self._rate()
        self._last = now

    def _wake(self) -> None:
        """Sets the time of the next look, unless one is set already that is not too late."""
        left = max(0.0, self._jobs[0][0] - self._virtual) / self._rate()
        when = self._clock.now + left
        if when < self._wakes - _INSTANT:
            self._wakes = when
            self._clock.after(left, lambda: self._look(when))

    def _look(self, when: float) -> None:
        if when != self._wakes:
            return  # A job has come since that ends earlier.
        self._wakes = math.inf
        self._advance()
        rate, jobs = self._rate(), self._jobs
        over = []
        while jobs and (jobs[0][0] - self._virtual) / rate <= _INSTANT:
            _, _, weight, event = heapq.heappop(jobs)
            self._load -= weight
            over.append(event)
        if jobs:
            self._wake()
        else:
            self._load, self._virtual = 0.0, 0.0
        for event in over:
            event.fire()


class Serial:
    """Something that does one job at a time, in the order in which they came.

    Attributes:
      busy: seconds for which there was a job, so far.
      longest: the most jobs that have waited at once.
    """

    def __init__(self, clock: Clock):
        """Starts idle."""
        self.busy, self.longest = 0.0, 0
        self._clock = clock
        self._jobs: deque[tuple[Callable[[], Event], Event]] = deque()
        self._works = False

    @property
    def waiting(self) -> int:
        """Jobs that are queued and have not begun."""
        return len(self._jobs)

    def do(self, job: Callable[[], Event]) -> Event:
        """Queues a job, a function that begins it; returns the event of its end."""
        end = Event()
        self._jobs.append((job, end))
        self.longest = max(self.longest, len(self._jobs))
        if not self._works:
            self._next()
        return end

    def _next(self) -> None:
        job, end = self._jobs.popleft()
        self._works = True
        begun = self._clock.now

        def over() -> None:
            self.busy += self._clock.now - begun
            self._works = False
            if self._jobs:
                # In a call of its own, so that many jobs of no time do not nest.
                self._works = True
                self._clock.after(0.0, self._next)
            end.fire()

        job().then(over)
