"""Who starts when: the schedules of the policies, and what losses and snapshots do to them."""

import collections
from collections.abc import Callable

from tfps.planning.exchange import Exchange
from tfps.planning.kernel import Event, Process, all_of, fired
from tfps.planning.setting import Setting
from tfps.planning.world import World

# Seconds until a worker that has vanished is taken for lost: five questions of two seconds.
NOTICE = 10.0


class Schedules:
    """All workers at work under a setting.

    Attributes:
      steps: steps of all workers that count.
      ended: per worker, when its last call ended.
      exchange: what the workers do.
    """

    def __init__(self, world: World, setting: Setting, hooks: bool):
        """Starts all workers.

        Args:
          world: in which nobody works yet.
          setting: that the world was made for.
          hooks: whether callbacks have hooks for batches, so that the chief looks at every call.
        """
        self.world, self.steps = world, 0
        self.exchange = Exchange(world, world.fleet.slowness())
        self._setting, self._policy, self._hooks = setting, setting.policy(), hooks
        self._steps_per_call = world.profile.steps_per_call
        if self._policy.kind == "bounded":
            self._steps_per_call = min(self._steps_per_call, int(self._policy.bound) + 1)
        self.ended = [0.0] * world.fleet.workers
        self._stops = False
        rate = world.fleet.leaving / 3600
        draw = world.random.expovariate
        self._next_loss: Callable[[], float] = lambda: draw(rate) if rate else float("inf")
        self._leaves = [self._next_loss() for _ in self.ended]
        self._away = rate * world.fleet.returning / (1 + rate * world.fleet.returning)
        self._clocks = _Clocks(world.fleet.workers, self._policy.bound)
        if self._policy.in_rounds:
            self._round = _Round(world.fleet.workers - self._policy.backups)
        process = self._in_rounds if self._policy.in_rounds else self._alone
        self._ends = [world.clock.start(process(w)) for w in range(world.fleet.workers)]

    @property
    def call(self) -> int:
        """Steps in a call."""
        if self._policy.in_rounds and not self._policy.steps:
            return 1
        return self._policy.steps or self._steps_per_call

    def stop(self) -> Event:
        """Lets every worker end its call, and gives out no more; returns the event of the last."""
        self._stops = True
        return all_of(self._ends)

    def _is_lost(self, worker: int) -> bool:
        """Whether a worker was lost since it was asked for last."""
        now = self.world.clock.now
        if now < self._leaves[worker]:
            return False
        self._leaves[worker] = now + self._next_loss()
        return True

    # Workers that step by themselves.

    def _alone(self, worker: int) -> Process:
        world, exchange, setting = self.world, self.exchange, self._setting
        if world.random.random() < self._away:
            # Some are away at any time, so also at the beginning.
            self._clocks.leave(worker)
            yield world.random.random() * world.fleet.returning
            self._clocks.join(worker)
        held = exchange.version()
        if setting.overlap and not self._policy.steps:
            yield exchange.pull(worker)
        while not self._stops:
            yield self._clocks.allowed(worker)
            yield world.dispatch(worker, self.call)
            if self._policy.steps:
                version = exchange.version()
                ready = yield from self._local(worker)
                yield exchange.push(worker, ready, version)
            else:
                for _ in range(self._steps_per_call):
                    version = exchange.version()
                    pulled = exchange.pull(worker)
                    if setting.overlap == 0:
                        yield pulled
                        yield exchange.push(worker, exchange.compute(worker), version)
                        continue
                    if setting.overlap == 1:
                        pushed = exchange.push(worker, exchange.compute(worker), held)
                        yield all_of([pulled, pushed])
                    else:
                        # The gradients of the step before, which are encoded, leave at once.
                        now = [fired()] * world.servers[0].load.messages
                        pushed = exchange.push(worker, now, held, encodes=False)
                        coded = exchange.encode(worker, exchange.compute(worker))
                        yield all_of([pulled, pushed, coded])
                    held = version
            yield world.delay
            if self._hooks:
                yield world.report()
            yield from self._over(worker)

    def _over(self, worker: int) -> Process:
        """Counts a call, unless its worker was lost meanwhile and takes part again later."""
        self.ended[worker] = self.world.clock.now
        if not self._is_lost(worker):
            self.steps += self.call
            self._clocks.done(worker, self.call)
            return
        self._clocks.leave(worker)
        yield self.world.fleet.returning
        self._clocks.join(worker)

    def _local(self, worker: int):
        """Steps on a copy, while or after the parameters arrive; returns when gradients exist."""
        steps, delay = self._policy.steps, self._policy.delay
        exchange = self.exchange
        pulled = exchange.pull(worker)
        if not delay:
            yield pulled
            return exchange.compute(worker, steps, updates=True)
        early = exchange.compute(worker, delay, updates=True)
        yield all_of([pulled, *early])
        return exchange.compute(worker, steps - delay, updates=True) if delay < steps else early

    # Workers that step together.

    def _in_rounds(self, worker: int) -> Process:
        round_ = self._round
        while not self._stops:
            number = round_.number
            yield from self._compute_for_round(worker)
            while self._is_lost(worker):
                # Somebody else does it again once the loss is noticed.
                yield NOTICE
                yield from self._compute_for_round(worker)
            if number != round_.number or round_.pushes:
                self.ended[worker] = self.world.clock.now
                if round_.pushes:
                    yield round_.over
                continue
            over = round_.over
            if round_.hold(worker):
                self._close()
            yield over
            self.ended[worker] = self.world.clock.now

    def _compute_for_round(self, worker: int) -> Process:
        world, exchange = self.world, self.exchange
        yield world.dispatch(worker, self.call)
        if self._policy.steps:
            ready = yield from self._local(worker)
        else:
            yield exchange.pull(worker)
            ready = exchange.compute(worker)
        yield all_of(ready)
        yield world.delay
        yield world.report()

    def _close(self) -> None:
        """Lets those who hold gradients push them, and begins the next round after that."""
        world, held = self.world, self._round.close()
        for server in world.servers:
            server.open_round(len(held))
        version = self.exchange.version()

        def push(worker: int) -> Process:
            yield world.dispatch(worker, 0)
            ready = [fired()] * world.servers[0].load.messages
            yield self.exchange.push(worker, ready, version)
            yield world.delay
            yield world.report()

        def over() -> None:
            self.steps += len(held) * self.call
            self._round.next()

        all_of([world.clock.start(push(w)) for w in held]).then(over)


class _Clocks:
    """Counts the steps of workers; lets nobody be more than `bound` steps ahead of the slowest."""

    def __init__(self, workers: int, bound: float):
        self._done = dict.fromkeys(range(workers), 0)
        self._bound = bound
        self._at = collections.Counter({0: workers})
        self._least = 0
        self._moved = Event()

    def allowed(self, worker: int) -> Event:
        """An event after which the worker may start: it asks again until that has happened."""
        if self._done[worker] - self._least <= self._bound:
            return fired()
        allowed = Event()

        def look() -> None:
            self.allowed(worker).then(allowed.fire)

        self._moved.then(look)
        return allowed

    def done(self, worker: int, steps: int) -> None:
        """The worker has done some steps."""
        before = self._done[worker]
        self._done[worker] = before + steps
        self._at[before + steps] += 1
        self._take(before)

    def leave(self, worker: int) -> None:
        """Nobody waits for the worker any more."""
        self._take(self._done[worker])

    def join(self, worker: int) -> None:
        """The worker takes part again, level with the slowest."""
        self._done[worker] = self._least
        self._at[self._least] += 1

    def _take(self, count: int) -> None:
        self._at[count] -= 1
        if self._at[count]:
            return
        del self._at[count]
        if count == self._least and self._at:
            self._least = min(self._at)
            moved, self._moved = self._moved, Event()
            moved.fire()


class _Round:
    """The present round: who holds gradients, and whether they are being pushed.

    Attributes:
      number: of the round.
      pushes: whether the servers are being given the gradients.
      over: the event of the end of the round.
    """

    def __init__(self, enough: int):
        self.number, self.pushes, self.over = 0, False, Event()
        self._enough, self._held = max(1, enough), []  # type: tuple[int, list[int]]

    def hold(self, worker: int) -> bool:
        """Notes that a worker holds gradients; returns whether these are enough."""
        self._held.append(worker)
        return len(self._held) >= self._enough

    def close(self) -> list[int]:
        """Returns the workers that hold gradients; from now on, others are too late."""
        self.pushes = True
        held, self._held = self._held, []
        return held

    def next(self) -> None:
        """Begins the next round."""
        self.number += 1
        self.pushes = False
        over, self.over = self.over, Event()
        over.fire()
