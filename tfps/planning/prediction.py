"""What a setting comes to on a fleet: one simulation, and its figures."""

import dataclasses
import math
from typing import Any

from tfps import errors
from tfps.planning.fleet import Fleet
from tfps.planning.profile import Profile
from tfps.planning.schedules import Schedules
from tfps.planning.setting import Setting
from tfps.planning.world import World

# Calls of each worker that are simulated before those that count, and that count at least. Of many
# workers fewer are enough: the mean is over all of them.
_WARMUP, _CALLS = 3, 4
_MANY, _WARMUP_OF_MANY, _CALLS_OF_MANY = 1000, 2, 2
# Calls of all workers together that count at least, so that chance does not decide.
_TOGETHER = 80

_DAY = 86_400.0  # s


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one setting comes to.

    Attributes:
      setting: of the Trainer.
      ps: number of parameter servers.
      step: seconds of a worker's step while all workers train.
      examples_per_second: of all workers together.
      staleness: updates that a push has missed, on average.
      staleness_max: at most.
      links: name -> share of its time for which the link works: "worker down", "worker up", "ps
        down", "ps up", of the mean worker and ps.
      ps_loop: share of its time for which the loop of a ps has a letter.
      ps_cores, worker_cores: share of the hosts' cores that works.
      chief: share of its time for which the chief's interpreter works.
      limit: what limits the step, in words.
      up, down: bytes that a worker sends and receives in a step.
      bytes_per_day: that all workers send and receive in a day.
      ps_memory, worker_memory: bytes of parameters, optimizer, codecs and what waits; without what
        TensorFlow itself takes.
      lost: share of the steps' time that snapshots cost.
    """

    setting: Setting
    ps: int
    step: float
    examples_per_second: float
    staleness: float
    staleness_max: int
    links: dict[str, float]
    ps_loop: float
    ps_cores: float
    worker_cores: float
    chief: float
    limit: str
    up: float
    down: float
    bytes_per_day: float
    ps_memory: float
    worker_memory: float
    lost: float

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON has them."""
        return dataclasses.asdict(self)


def simulate(
    profile: Profile,
    fleet: Fleet,
    setting: Setting,
    hooks: bool = False,
    seed: int = 0,
    thin: int = 1,
) -> Prediction:
    """Simulates training until it is steady, and then some steps more.

    Args:
      profile: of the model.
      fleet: of hosts.
      setting: of the Trainer.
      hooks: whether callbacks have hooks for batches.
      seed: of the draws: how long steps take, and who is lost.
      thin: see `World`.

    Raises:
      ConfigError: the profile has no such codec, or there are as many backups as workers.
    """
    if setting.policy().backups >= fleet.workers:
        raise errors.ConfigError(
            f"consistency={setting.consistency!r} waits for none of {fleet.workers} workers; have "
            "fewer backups than workers"
        )
    world = World(profile, fleet, setting, seed, thin)
    schedules = Schedules(world, setting, hooks)
    n, call = fleet.workers, schedules.call
    warmup, calls = (_WARMUP, _CALLS) if n < _MANY else (_WARMUP_OF_MANY, _CALLS_OF_MANY)
    begin = warmup * n * call
    if not world.clock.run(lambda: schedules.steps >= begin):
        raise AssertionError("the simulation came to a halt")
    before, missed = _Counts.of(world, schedules), len(schedules.exchange.missed)
    end = schedules.steps + max(calls, math.ceil(_TOGETHER / n)) * n * call
    world.clock.run(lambda: schedules.steps >= end)
    over = _Counts.of(world, schedules)
    stale = schedules.exchange.missed[missed:] or [0]
    lost = _drained(world, schedules) / fleet.snapshots if math.isfinite(fleet.snapshots) else 0.0
    return _figures(world, setting, before, over, stale, min(0.99, lost))


@dataclasses.dataclass(frozen=True)
class _Counts:
    """What was counted up to a moment."""

    time: float
    steps: int
    sent: float
    received: float
    ps_sent: float
    ps_received: float
    worker_work: float
    ps_work: float
    loop: float
    chief: float

    @classmethod
    def of(cls, world: World, schedules: Schedules) -> "_Counts":
        servers, workers = world.servers, world.workers
        return cls(
            time=world.clock.now,
            steps=schedules.steps,
            sent=sum(w.up.done for w in workers),
            received=sum(w.down.done for w in workers),
            ps_sent=sum(s.host.up.done for s in servers),
            ps_received=sum(s.host.down.done for s in servers),
            worker_work=sum(w.cpu.done for w in workers),
            ps_work=sum(s.host.cpu.done for s in servers),
            loop=sum(s.loop.busy for s in servers),
            chief=world.chief.busy,
        )

    def since(self, before: "_Counts") -> "_Counts":
        """What was counted from another moment to this one."""
        return _Counts(
            **{
                field.name: getattr(self, field.name) - getattr(before, field.name)
                for field in dataclasses.fields(self)
            }
        )


def _drained(world: World, schedules: Schedules) -> float:
    """Seconds for which the mean worker waits for others when a cut is made."""
    end = schedules.stop()
    world.clock.run(lambda: end.fired)
    last = max(schedules.ended)
    return sum(last - one for one in schedules.ended) / len(schedules.ended)


def _figures(world, setting, before, over, stale, lost) -> Prediction:
    profile, fleet = world.profile, world.fleet
    counts, n = over.since(before), fleet.workers
    rate = counts.steps / counts.time * (1 - lost)
    whole = counts.time
    down, up = fleet.worker_links
    ps_down, ps_up = fleet.links
    links = {
        "worker down": counts.received / n / down / whole,
        "worker up": counts.sent / n / up / whole,
        "ps down": counts.ps_received / fleet.ps / ps_down / whole,
        "ps up": counts.ps_sent / fleet.ps / ps_up / whole,
    }
    cores = fleet.cores or profile.cores
    hosts = 1 if fleet.shared else n
    shares = {
        **links,
        "the loop of the ps": counts.loop / len(world.servers) / whole,
        "the cores of the ps": counts.ps_work / (1 if fleet.shared else fleet.ps) / cores / whole,
        "the chief": counts.chief / whole,
    }
    if fleet.shared:
        # All tasks have counted the same cores.
        share = world.workers[0].cpu.done / max(world.clock.now, 1e-9) / cores
        shares["the cores of the ps"] = share
    worker_cores = (
        shares["the cores of the ps"]
        if fleet.shared
        else counts.worker_work / hosts / cores / whole
    )
    return Prediction(
        setting=setting,
        ps=fleet.ps,
        step=n / rate,
        examples_per_second=rate * profile.examples * world.thin,
        staleness=sum(stale) / len(stale) * world.thin,
        staleness_max=max(stale) * world.thin,
        links=links,
        ps_loop=shares["the loop of the ps"],
        ps_cores=shares["the cores of the ps"],
        worker_cores=worker_cores,
        chief=shares["the chief"],
        limit=_limit(shares, worker_cores),
        up=counts.sent / counts.steps,
        down=counts.received / counts.steps,
        bytes_per_day=(counts.sent + counts.received) / counts.steps * rate * world.thin * _DAY,
        ps_memory=_ps_memory(world, setting),
        worker_memory=_worker_memory(world, setting),
        lost=lost,
    )


# From this share on, what works is what everybody waits for.
_FULL = 0.85


def _limit(shares: dict[str, float], computing: float) -> str:
    name, share = max(shares.items(), key=lambda item: item[1])
    if share >= _FULL:
        return name if name.startswith("the ") else f"the link ({name})"
    if computing >= _FULL:
        return "computing on the workers"
    return f"waiting in turn (busiest: {name}, {share:.0%})"


def _ps_memory(world: World, setting: Setting) -> float:
    """Bytes on the ps that has most."""
    profile, policy = world.profile, setting.policy()
    part = 1 / world.fleet.ps
    own = profile.parameters + profile.trained * profile.slots
    if policy.in_rounds:
        own += profile.trained
    if policy.kind == "local":
        own += profile.trained  # The momentum of the outer optimizer.
    _, pull = setting.costs(profile)
    # Of codecs that send differences, a ps knows what each worker holds.
    own += profile.parameters * pull.state * world.fleet.workers * world.thin
    server = world.servers[0]
    inbox = server.loop.longest * world.thin * server.load.up / server.host.times
    return own * part + inbox


def _worker_memory(world: World, setting: Setting) -> float:
    """Bytes on a worker."""
    profile, policy = world.profile, setting.policy()
    push, pull = setting.costs(profile)
    # Parameters and gradients, and what the codecs remember.
    copies = 2.0 + push.state + pull.state
    if policy.kind == "local":
        copies += profile.slots + 1 + bool(policy.delay)
    elif setting.overlap:
        copies += setting.overlap  # Parameters that arrive, and gradients that wait.
    return profile.parameters * copies
