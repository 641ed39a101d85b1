"""`push="auto"` and `pull="auto"`: codecs that are chosen while training goes on.

The first steps are made without a codec. Then the links are measured, at a cut, and the planner is
asked with what the steps have taken. It says which codecs pay, or that none does. From then on the
length of the steps is watched: where it has changed, the links are measured again.
"""

import os
import statistics
import time
from collections.abc import Callable

import tensorflow as tf

from tfps.cluster.calls import WorkerCalls
from tfps.compression import parse
from tfps.planning.fleet import GOODPUT, Fleet
from tfps.planning.prediction import Prediction, simulate
from tfps.planning.profile import Bucket, Dispatch, Profile, Transport
from tfps.planning.search import recommend
from tfps.planning.setting import Setting
from tfps.profiling import arithmetic, codec_costs
from tfps.training import link_probe
from tfps.training.consistency import BoundedStaleness, Sync
from tfps.training.link_probe import Links
from tfps.training.policy import ConsistencyPolicy
from tfps.training.served_model import ServedModel

# What may be chosen. Of gradients, those that cost no quality without a warm-up; with one, also
# those of `_WARM` (docs/compression.md).
_PUSH = ("identity", "bfloat16", "int8")
_WARM = ("onebit", "topk:0.01", "powersgd:4")
_PULL = ("identity", "bfloat16", "int8", "difference:twobit")

# Steps of each worker, and seconds, from which a step's length is known: many short ones, or a few
# long ones.
_STEPS, _SECONDS = 20, 1.0
_FEW_STEPS, _MANY_SECONDS = 4, 5.0

# Steps of each worker that are compared with those before.
_WINDOW = 40

# How many times as long, or as short, steps must have become for the links to be looked at again,
# and links for the planner to be asked again.
_CHANGED = 1.4

# Seconds in which a codec is timed.
_TIMING = 0.03


class _Watch:
    """The length of steps, from when they end; a watch that can be stopped."""

    def __init__(self) -> None:
        self.steps = 0
        self._taken, self._processor = 0.0, 0.0
        self._last: tuple[float, float] | None = None

    def stop(self) -> None:
        """What comes next does not follow the last step at once."""
        self._last = None

    def add(self, steps: int) -> None:
        """Notes that a worker has ended some steps."""
        now = time.perf_counter(), time.process_time()
        if self._last is not None:  # The first steps were traced, or waited for others.
            self.steps += steps
            self._taken += now[0] - self._last[0]
            self._processor += now[1] - self._last[1]
        self._last = now

    def length(self, workers: int, steps: int = 1, seconds: float = 0.0) -> float | None:
        """Seconds of a step of one worker; None before so many steps of each, and seconds."""
        if self.steps < steps * workers or self._taken < seconds:
            return None
        return self._taken * workers / self.steps

    @property
    def processor(self) -> float:
        """Seconds of processor time that a step took here."""
        return self._processor / max(1, self.steps)


class AutoCodecs:
    """Chooses codecs for what is to have one.

    Attributes:
      chosen: the texts of the codecs, (push, pull); None before the first choice.
      said: what was chosen and why, a line; the last one.
    """

    def __init__(self, calls: WorkerCalls, overlap: int, warmup: int, say: Callable[[str], None]):
        """Chooses nothing yet.

        Args:
          calls: to the workers.
          overlap: of the trainer.
          warmup: updates before gradients pass through codecs.
          say: is told what was chosen.
        """
        self._calls, self._overlap, self._warmup = calls, overlap, warmup
        self._say = say
        self.chosen: tuple[str, str] | None = None
        self.said = ""
        self._links: Links | None = None
        self._usual: float | None = None  # seconds of a step since the last choice
        self._changed = False  # whether steps have another length than that
        self._profile: Profile | None = None
        self._watch = _Watch()

    def begin_run(self) -> None:
        """Workers begin to follow a policy."""
        self._watch.stop()

    def ended(self, steps: int) -> None:
        """A worker has ended some steps."""
        self._watch.add(steps)
        length = self._watch.length(len(self._calls.living), _WINDOW)
        if self.chosen is None or length is None:
            return
        if self._usual is not None and _differ(length, self._usual):
            self._changed = True
        else:
            self._usual, self._watch = self._usual or length, _Watch()

    def is_due(self, warming: bool) -> bool:
        """Whether codecs are to be chosen at the next cut.

        Args:
          warming: whether gradients do not pass through codecs yet.
        """
        if self.chosen is not None:
            return self._changed
        if warming:
            return False
        workers = len(self._calls.living)
        known = self._watch.length(workers, _STEPS, _SECONDS)
        return (known or self._watch.length(workers, _FEW_STEPS, _MANY_SECONDS)) is not None

    def choose(self, served: ServedModel, policy: ConsistencyPolicy) -> bool:
        """Measures, and puts codecs into the plan; whether they are other ones than before.

        Args:
          served: the model on the servers.
          policy: that training follows.

        Raises:
          TaskLost: a task is gone.
        """
        workers = len(self._calls.living)
        watch, self._watch = self._watch, _Watch()
        self._usual, self._changed = None, False
        length, plan = watch.length(workers), served.store.plan
        links = link_probe.measure(self._calls, plan.num_ps)
        if length is None or links is None:
            return False
        before, self._links = self._links, links
        if before is not None and not _links_differ(links, before):
            return False
        if self._profile is None:
            self._profile = self._measured(served, watch.processor)
        fleet = _fleet(links, workers, plan.num_ps)
        consistency = _text(policy)
        plain = Setting("identity", "identity", self._overlap, consistency)
        if before is None:
            self._profile = _fitted(self._profile, fleet, plain, length)
        push = self._profile.push if plan.chooses("push") else ["identity"]
        pull = self._profile.pull if plan.chooses("pull") else ["identity"]
        found = [
            simulate(self._profile, fleet, Setting(up, down, self._overlap, consistency))
            for up in push
            for down in pull
        ]
        best, reason = recommend(found, consistency, copies=False)
        before_chosen, self.chosen = self.chosen, (best.setting.push, best.setting.pull)
        self.said = _line(best, reason, links)
        if self.chosen == (before_chosen or ("identity", "identity")):
            if before_chosen is None:
                self._say(self.said)
            return False
        self._say(self.said)
        plan.decide(parse(self.chosen[0]), parse(self.chosen[1]))
        return True

    def _measured(self, served: ServedModel, dispatch: float) -> Profile:
        """What the planner has to know, measured on the chief; the time of a step is fitted."""
        store, plan, optimizer = served.store, served.store.plan, served.optimizer
        assert optimizer is not None
        push = [*_PUSH, *(_WARM if self._warmup else ())]
        buckets = tuple(
            Bucket(b.nbytes, i in plan.of_tables, b.kind.treatment.pushed)
            for i, b in enumerate(plan.buckets)
        )
        update = arithmetic.update(store, optimizer, bool(served.program.model.jit_compile), 0.2)
        return Profile(
            model=served.program.model.name,
            cores=len(os.sched_getaffinity(0)),
            examples=1,
            steps_per_call=served.program.model.steps_per_execution,
            compute=1e-3,
            threads=1.0,
            spread=0.05,
            first_gradient=1.0,
            update=update,
            add=arithmetic.add(0.05),
            slots=0.0,
            buckets=buckets,
            push={t: codec_costs.cost(plan, t, False, {}, _TIMING) for t in push},
            pull={t: codec_costs.cost(plan, t, True, {}, _TIMING) for t in _PULL},
            transport=Transport(*_transport(), 0.0, 0.0),
            dispatch=Dispatch(dispatch, 0.0, 0.0),
        )


def _fleet(links: Links, workers: int, ps: int) -> Fleet:
    """Hosts with these links; what a worker receives, a ps sends."""
    down, up = (f"{rate * 8 / 1e6 / GOODPUT:.6f}mbit" for rate in (links.down, links.up))
    return Fleet(
        workers=workers,
        ps=ps,
        bandwidth=f"{up}/{down}",
        worker_bandwidth=f"{down}/{up}",
        latency=f"{links.latency * 1e3:.6f}ms",
    )


def _transport() -> tuple[float, float]:
    """(sending, receiving): seconds of processor time per byte, of a copy in memory."""
    size = 16 << 20
    held = tf.zeros([size], tf.uint8)
    (held + 1).numpy()
    begun = time.process_time()
    for _ in range(4):
        held.numpy().tobytes()
    each = (time.process_time() - begun) / (4 * size)
    # A byte is copied once to be sent, and twice by those who receive it.
    return each, 2 * each


def _fitted(profile: Profile, fleet: Fleet, setting: Setting, length: float) -> Profile:
    """The profile with as much computing as makes the steps as long as they were."""
    low, high = 0.0, length * max(1, len(os.sched_getaffinity(0)))
    for _ in range(12):
        middle = (low + high) / 2
        step = simulate(profile.replace(compute=middle), fleet, setting).step
        low, high = (middle, high) if step < length else (low, middle)
    return profile.replace(compute=statistics.mean([low, high]))


def _line(best: Prediction, reason: str, links: Links) -> str:
    speeds = f"{links.down * 8 / 1e6:,.0f} and {links.up * 8 / 1e6:,.0f} Mb/s down and up"
    return f"codecs: {reason} (links of {speeds}, a step of {1e3 * best.step:,.0f} ms is expected)"


def _differ(a: float, b: float) -> bool:
    return max(a, b) > _CHANGED * min(a, b)


def _links_differ(a: Links, b: Links) -> bool:
    return _differ(a.down, b.down) or _differ(a.up, b.up)


def _text(policy: ConsistencyPolicy) -> str:
    """The policy as the planner names it; one of the user's own is taken for `Async`."""
    if isinstance(policy, BoundedStaleness):
        return f"bounded:{policy.bound}"
    if isinstance(policy, Sync):
        return f"sync:{policy.backups}" if policy.backups else "sync"
    return "async"
