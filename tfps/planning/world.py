"""The simulated cluster: hosts, the lines between them, parameter servers, and the chief."""

import dataclasses
import math
import random
from collections import deque

from tfps.planning.fleet import Fleet
from tfps.planning.kernel import Clock, Event, Serial, Shared, all_of
from tfps.planning.profile import Profile
from tfps.planning.setting import Setting

# Messages of a step of all workers above which those of one ps travel as one, and then all ps are
# simulated as one that is as many times as wide. Ps hold equal parts, so they do the same at the
# same time.
_FINE = 400


@dataclasses.dataclass
class Host:
    """A machine, or several equal ones that do the same at the same time.

    Attributes:
      cpu: its cores.
      up, down: its link.
      times: how many hosts it stands for.
    """

    cpu: Shared
    up: Shared
    down: Shared
    times: int = 1


class Line:
    """The connection of two tasks in one direction: messages leave in the order of their readiness.

    A message is serialised by a thread of the sender, travels over the links of both hosts, and is
    taken in by a thread of the receiver.
    """

    def __init__(
        self, clock: Clock, source: Host, target: Host, latency: float, rates: tuple[float, float]
    ):
        """Starts idle; `rates` are the processor's seconds per byte of sender and receiver."""
        self._clock, self._source, self._target = clock, source, target
        self._latency, self._rates = latency, rates
        self._queue: deque[tuple[float, Event]] = deque()
        self._sends = False

    def send(self, size: float) -> Event:
        """Sends a message of so many bytes; returns the event of its arrival."""
        arrived = Event()
        self._source.cpu.work(size * self._rates[0], self._source.times).then(
            lambda: self._ready(size, arrived)
        )
        return arrived

    def _ready(self, size: float, arrived: Event) -> None:
        self._queue.append((size, arrived))
        if not self._sends:
            self._next()

    def _next(self) -> None:
        size, arrived = self._queue.popleft()
        self._sends = True
        over = all_of([self._source.up.work(size), self._target.down.work(size)])
        over.then(lambda: self._sent(size, arrived))

    def _sent(self, size: float, arrived: Event) -> None:
        self._sends = False
        if self._queue:
            self._next()

        def taken_in() -> None:
            self._target.cpu.work(size * self._rates[1], self._target.times).then(arrived.fire)

        self._clock.delay(self._latency).then(taken_in)


@dataclasses.dataclass(frozen=True)
class Load:
    """What one worker exchanges with one simulated ps in an exchange, and what that costs.

    Attributes:
      messages: in which the values travel, each way.
      down, up: bytes of all of them.
      read: seconds of the ps for a pull: reading, encoding, and half of what a step costs besides.
      decode: of the worker for a pull.
      encode: of the worker for a push.
      take: of the ps for a push before the loop takes the letter.
      decode_up: of the loop, to decode a push.
      add: of the loop, to add a push to the sum of a round.
      update: of the loop, for an update.
    """

    messages: int
    down: float
    up: float
    read: float
    decode: float
    encode: float
    take: float
    decode_up: float
    add: float
    update: float

    @classmethod
    def of(
        cls, profile: Profile, setting: Setting, part: float, times: int, messages: int
    ) -> "Load":
        """The load of a simulated ps that has a part of the values and stands for `times` ps."""
        push, pull = setting.costs(profile)
        whole = setting.policy().kind == "local"
        travels = [whole or not b.table for b in profile.buckets]
        values = sum(b.bytes for b, t in zip(profile.buckets, travels, strict=True) if t)
        sent = [t and b.pushed for b, t in zip(profile.buckets, travels, strict=True)]
        pushed = sum(b.bytes for b, s in zip(profile.buckets, sent, strict=True) if s)
        down: float = sum(n for n, t in zip(pull.bytes, travels, strict=True) if t)
        up: float = sum(n for n, s in zip(push.bytes, sent, strict=True) if s)
        if not whole:
            down, up = down + pull.row_bytes, up + push.row_bytes
        besides = profile.transport.ps_step * times
        return cls(
            messages=messages,
            down=part * down,
            up=part * up,
            read=part * values * pull.encode + besides / 2,
            decode=part * values * pull.decode,
            encode=part * pushed * push.encode,
            take=besides / 2,
            decode_up=part * pushed * push.decode,
            add=part * profile.trained * profile.add,
            update=part * profile.trained * profile.update,
        )


class Server:
    """A parameter server: its loop takes letters one by one.

    Attributes:
      host: of the server.
      load: of one worker's exchange.
      loop: takes letters.
      version: updates so far.
    """

    def __init__(self, clock: Clock, host: Host, load: Load, threads: float):
        """Starts with an empty inbox."""
        self.host, self.load, self.loop, self.version = host, load, Serial(clock), 0
        self._threads = threads
        self._round = 0  # Letters that the round still lacks; 0 outside of rounds.

    def open_round(self, letters: int) -> None:
        """Lets the next letters be added up, and the last of them bring the update."""
        self._round = letters

    def take(self) -> Event:
        """Takes in a letter that has arrived whole; returns the event of its answer."""

        def begin() -> Event:
            load, work = self.load, self.load.decode_up
            if self._round:
                work += load.add
                self._round -= 1
            if not self._round:
                work += load.update
                self.version += 1
            return self.host.cpu.work(work, self._threads * self.host.times)

        return self.loop.do(begin)

    @property
    def loop_waiting(self) -> int:
        """Letters that will be applied before one that arrives now; in a round, none."""
        return 0 if self._round else self.loop.waiting


class World:
    """All hosts of a fleet, under one setting.

    Attributes:
      clock: the time.
      random: draws that are the same in every run.
      workers, servers: the hosts of the workers, and the simulated ps.
      up, down: per worker, per server, the line of that direction.
      chief: the interpreter of the chief.
      policy: of the setting.
      delay: seconds of a message between a worker and another host.
    """

    def __init__(
        self, profile: Profile, fleet: Fleet, setting: Setting, seed: int = 0, thin: int = 1
    ):
        """Builds the cluster; nobody works yet.

        Args:
          profile: of the model.
          fleet: its machines.
          setting: of the Trainer.
          seed: of `random`.
          thin: how many workers each worker of the fleet stands for at the ps and at the chief,
            which are so many times as slow. It is right for what is full, and too slow for what is
            not, so it serves for a first choice only.
        """
        self.thin = thin
        self.clock, self.random = Clock(), random.Random(seed)
        self.profile, self.fleet, self.policy = profile, fleet, setting.policy()
        self.delay = fleet.delay
        self._cores = fleet.cores or profile.cores
        self._machine = Shared(self.clock, self._cores, 1.0) if fleet.shared else None
        self.workers = [self._host(*fleet.worker_links) for _ in range(fleet.workers)]
        groups, times, messages = self._resolution()
        self.servers = [
            Server(
                self.clock,
                self._host(fleet.links[0] / thin, fleet.links[1] / thin, times, thin),
                Load.of(profile, setting, times / fleet.ps, times, messages),
                min(profile.threads, self._cores),
            )
            for _ in range(groups)
        ]
        self.chief_host = self._host(fleet.links[0] / thin, fleet.links[1] / thin)
        self.chief = Serial(self.clock)
        rates = profile.transport.send, profile.transport.receive
        line = self._line
        self.up = [[line(w, s.host, rates) for s in self.servers] for w in self.workers]
        self.down = [[line(s.host, w, rates) for s in self.servers] for w in self.workers]
        self._orders = [line(self.chief_host, w, (0.0, 0.0)) for w in self.workers]

    def _resolution(self) -> tuple[int, int, int]:
        """(simulated ps, how many ps each stands for, messages of each)."""
        fleet = self.fleet
        travelling = [b for b in self.profile.buckets if self.policy.kind == "local" or not b.table]
        messages = min(8, max(1, math.ceil(len(travelling) / fleet.ps)))
        if fleet.workers * fleet.ps * messages <= _FINE:
            return fleet.ps, 1, messages
        if fleet.workers * fleet.ps <= _FINE:
            return fleet.ps, 1, 1
        return 1, fleet.ps, 1

    def _host(self, down: float, up: float, times: int = 1, thin: int = 1) -> Host:
        clock = self.clock
        cpu = self._machine or Shared(clock, self._cores * times / thin, 1.0)
        return Host(cpu, Shared(clock, up * times), Shared(clock, down * times), times)

    def _line(self, source: Host, target: Host, rates: tuple[float, float]) -> Line:
        return Line(self.clock, source, target, self.delay, rates)

    def dispatch(self, worker: int, steps: int) -> Event:
        """Lets the chief make a call to a worker; returns the event of its arrival there."""
        dispatch, arrived = self.profile.dispatch, Event()
        size = dispatch.batch_bytes * steps

        def sent() -> None:
            self._orders[worker].send(size).then(arrived.fire)

        self.chief.do(lambda: self.chief_host.cpu.work(dispatch.call * self.thin)).then(sent)
        return arrived

    def report(self) -> Event:
        """Lets the chief look at what a call came to; returns the event of that."""
        cost = self.profile.dispatch.report * self.thin
        return self.chief.do(lambda: self.chief_host.cpu.work(cost))
