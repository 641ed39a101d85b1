"""What a worker does in a step, as events: pull, compute, push (the steps of `tfps/worker/`)."""

from collections.abc import Sequence

from tfps.planning.kernel import Event, Process, all_of
from tfps.planning.world import World


class Exchange:
    """The parts of the steps of all workers.

    Attributes:
      missed: per push, how many updates it has missed, as ps 0 sees it.
    """

    def __init__(self, world: World, slowness: Sequence[float]):
        """Takes a world that nobody works in yet."""
        self._world, self._profile = world, world.profile
        self._slowness = slowness
        self._stages = world.servers[0].load.messages
        self.missed: list[int] = []

    def pull(self, worker: int) -> Event:
        """Brings the parameters to a worker; returns the event after their last one is decoded."""
        return all_of([self._pull_from(worker, s) for s in range(len(self._world.servers))])

    def version(self) -> int:
        """Updates of ps 0 so far, which a pull that begins now will have."""
        return self._world.servers[0].version

    def _pull_from(self, worker: int, s: int) -> Event:
        world = self._world
        server, line = world.servers[s], world.down[worker][s]
        load, n = server.load, server.load.messages
        host, done, left = world.workers[worker], Event(), n

        def decoded() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.fire()

        def arrived() -> None:
            host.cpu.work(load.decode / n).then(decoded)

        def read() -> None:
            line.send(load.down / n).then(arrived)

        def asked() -> None:
            for _ in range(n):
                server.host.cpu.work(load.read / n, server.host.times).then(read)

        world.clock.delay(world.delay).then(asked)
        return done

    def compute(self, worker: int, steps: int = 1, updates: bool = False) -> list[Event]:
        """Computes on a worker; returns the events after which parts of the gradients exist.

        Args:
          worker: index.
          steps: that are computed one after another.
          updates: whether the worker's own optimizer updates its copy in each.
        """
        profile, world = self._profile, self._world
        noise = world.random.gauss(1.0, profile.spread / steps**0.5)
        whole = profile.compute * self._slowness[worker] * max(0.2, noise)
        whole += profile.transport.worker_step
        if updates:
            whole += profile.trained * profile.update * self._slowness[worker]
        whole *= steps
        first = 1.0 if steps > 1 or updates else profile.first_gradient
        parts = self._stages if first < 1 else 1
        sizes = [whole * (1 - first) / parts] * parts
        sizes[0] += whole * first
        ready = [Event() for _ in sizes]
        threads = min(profile.threads, world.workers[worker].cpu.capacity)

        def process() -> Process:
            for size, event in zip(sizes, ready, strict=True):
                yield world.workers[worker].cpu.work(size, threads)
                event.fire()

        world.clock.start(process())
        return ready if parts == self._stages else ready * self._stages

    def push(
        self, worker: int, ready: Sequence[Event], version: int, encodes: bool = True
    ) -> Event:
        """Sends a worker's gradients; returns the event after which all ps have answered.

        Args:
          worker: index.
          ready: per message, after which it may be encoded.
          version: of the parameters with which they were computed.
          encodes: whether they have still to be encoded.
        """
        count = range(len(self._world.servers))
        return all_of([self._push_to(worker, s, ready, version, encodes) for s in count])

    def encode(self, worker: int, ready: Sequence[Event]) -> Event:
        """Encodes a worker's gradients, to be sent later; returns the event of the end."""
        world = self._world
        cpu = world.workers[worker].cpu
        total = sum(server.load.encode for server in world.servers)
        done = Event()
        all_of(ready).then(lambda: cpu.work(total).then(done.fire))
        return done

    def _push_to(
        self, worker: int, s: int, ready: Sequence[Event], version: int, encodes: bool
    ) -> Event:
        world = self._world
        server, line = world.servers[s], world.up[worker][s]
        load, n = server.load, server.load.messages
        cpu, answered, left = world.workers[worker].cpu, Event(), n

        def applied() -> None:
            world.clock.delay(world.delay).then(answered.fire)

        def put() -> None:
            if s == 0:
                self.missed.append(server.version + server.loop_waiting - version)
            server.take().then(applied)

        def arrived() -> None:
            nonlocal left
            left -= 1
            if not left:
                server.host.cpu.work(load.take, server.host.times).then(put)

        def encoded() -> None:
            line.send(load.up / n).then(arrived)

        def known() -> None:
            cpu.work(load.encode / n if encodes else 0.0).then(encoded)

        for event in ready:
            event.then(known)
        return answered
