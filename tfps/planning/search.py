"""Which setting to choose: candidates, their order, and the reason of the choice."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tfps import errors
from tfps.planning.fleet import Fleet
from tfps.planning.prediction import Prediction, simulate
from tfps.planning.profile import Profile
from tfps.planning.setting import Setting

# What each further change of the training has to gain to be recommended. What has been gained must
# make up for what a plan does not know, and for quality (docs/compression.md).
WORTH = 1.1
# What training on copies has to gain, since it is another algorithm (docs/consistency.md).
WORTH_OF_COPIES = 2.0
# A fleet with fewer ps is preferred that is no more than this much slower.
ENOUGH = 0.95

# Workers above which the first choice among all candidates is made with fewer.
_SCREENED = 64
# Settings at most that are simulated again with all workers before one is recommended.
_EXACT = 3
# Pairs of codecs, besides none, that are tried with every policy.
_FINALISTS = 4

POLICIES = ("async", "bounded:2", "sync", "local:32,merge=each,delay=8", "local:32,delay=8")
_CASTS = ("float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to choose for a model on a fleet.

    Attributes:
      best: the recommended setting, and what it comes to.
      reason: of the recommendation, a line.
      candidates: all settings that were compared, the fastest first.
      by_ps: the recommended setting with other numbers of ps, in ascending order.
      fleet: for which this was asked.
      model: name of the profile's model.
    """

    best: Prediction
    reason: str
    candidates: tuple[Prediction, ...]
    by_ps: tuple[Prediction, ...]
    fleet: Fleet
    model: str

    @property
    def compresses(self) -> bool:
        """Whether a codec is recommended."""
        setting = self.best.setting
        return (setting.push, setting.pull) != ("identity", "identity")

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        return {
            "version": 1,
            "model": self.model,
            "fleet": {
                name: None if value == math.inf else value
                for name, value in dataclasses.asdict(self.fleet).items()
            },
            "reason": self.reason,
            "compresses": self.compresses,
            "best": self.best.to_json(),
            "candidates": [one.to_json() for one in self.candidates],
            "by_ps": [one.to_json() for one in self.by_ps],
        }


def plan(
    profile: Profile | str | os.PathLike,
    fleet: Fleet | None = None,
    *,
    consistency: str = "async",
    copies: bool = True,
    codecs: Sequence[str] | None = None,
    hooks: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    **hosts: Any,
) -> Plan:
    """Predicts how fast a model trains with each setting, and recommends one.

    Args:
      profile: of the model (`Trainer.profile`, or `--profile` of a binary), or its file.
      fleet: the cluster; or its attributes by name, such as `workers=64, ps=16,
        bandwidth="10gbit", latency="0.2ms"`.
      consistency: the policy that training is to follow. Other policies are compared, but not
        recommended, except for `LocalSteps`.
      copies: whether `LocalSteps` may be recommended.
      codecs: which codecs may be used, by the texts of the profile; None for all of them.
      hooks: whether callbacks have hooks for batches.
      seed: of what is drawn: how long steps take, and who is lost.
      progress: called with a line now and then.

    Returns:
      The plan: `plan.best.setting` is the recommended one, `plan.reason` says why.

    Raises:
      ConfigError: the profile, the fleet or one of the settings is none.
    """
    if not isinstance(profile, Profile):
        profile = Profile.read(profile)
    if fleet is not None and hosts:
        raise errors.ConfigError(
            f"plan was given a fleet and {sorted(hosts)}; give one of the two, or fleet.replace()"
        )
    try:
        fleet = fleet or Fleet(**hosts)
    except TypeError as e:
        known = ", ".join(field.name for field in dataclasses.fields(Fleet))
        raise errors.ConfigError(f"plan: {e}; a fleet has {known}") from e
    search = _Search(profile, fleet, codecs, hooks, seed, progress or (lambda line: None))
    found = search.candidates(consistency)
    found = search.exactly(found, Setting(consistency=consistency))
    best, reason = recommend(found, consistency, copies)
    for _ in range(_EXACT):
        found = search.exactly(found, best.setting)
        before, (best, reason) = best, recommend(found, consistency, copies)
        if best.setting == before.setting:
            break
    return Plan(best, reason, tuple(found), search.by_ps(best), fleet, profile.model)


class _Search:
    """Simulates the candidates for one model on one fleet."""

    def __init__(self, profile, fleet, codecs, hooks, seed, progress):
        self._profile, self._fleet, self._hooks, self._seed = profile, fleet, hooks, seed
        self._progress = progress
        for name in codecs or ():
            if name not in profile.push and name not in profile.pull:
                known = ", ".join({**profile.push, **profile.pull})
                raise errors.ConfigError(f"codecs: {name!r} was not measured; there are {known}")
        allowed = None if codecs is None else {"identity", *codecs}
        self._push, self._pull = (
            [name for name in known if allowed is None or name in allowed]
            for known in (profile.push, profile.pull)
        )
        thin = math.ceil(fleet.workers / _SCREENED)
        self._thin = 1 if fleet.shared else thin
        self._few = fleet.replace(workers=math.ceil(fleet.workers / self._thin))

    def candidates(self, consistency: str) -> list[Prediction]:
        """Predictions of all settings that are worth a look, the fastest first."""
        pairs = [(push, pull) for push in self._push for pull in self._pull]
        settings = [Setting(*pair, 1, consistency) for pair in pairs]
        self._progress(f"{len(settings)} pairs of codecs")
        first = self._ranked(settings)
        chosen = [p.setting for p in first if (p.setting.push, p.setting.pull) != pairs[0]]
        finalists = [pairs[0], *((s.push, s.pull) for s in chosen[:_FINALISTS])]
        # The safest codecs take part in any case, since a plan may prefer them.
        finalists += [(c, c) for c in (*_CASTS, "int8") if (c, c) in pairs]
        finalists = list(dict.fromkeys(finalists))
        policies = [consistency, *(one for one in POLICIES if one != consistency)]
        settings = [
            Setting(*pair, overlap, policy)
            for policy in policies
            for pair in finalists
            for overlap in ((0, 1, 2) if _overlaps(policy) else (0,))
        ]
        if self._fleet.workers == 1:
            settings = [s for s in settings if s.policy().kind not in ("sync", "bounded")]
        known = {p.setting: p for p in first}
        self._progress(f"{len(settings)} settings")
        more = self._ranked([s for s in settings if s not in known])
        return _sorted([*known.values(), *more])

    def _ranked(self, settings: Iterable[Setting]) -> list[Prediction]:
        return _sorted([self._simulate(self._few, setting, self._thin) for setting in settings])

    def _simulate(self, fleet: Fleet, setting: Setting, thin: int = 1) -> Prediction:
        return simulate(self._profile, fleet, setting, self._hooks, self._seed, thin)

    def exactly(self, found: list[Prediction], setting: Setting) -> list[Prediction]:
        """The predictions, that of one setting simulated with all workers."""
        if self._thin == 1:
            return found
        self._progress(f"{setting} with all {self._fleet.workers:,} workers")
        exact = self._simulate(self._fleet, setting)
        return _sorted([exact if p.setting == setting else p for p in found])

    def by_ps(self, best: Prediction) -> tuple[Prediction, ...]:
        """A setting with a quarter to four times as many ps."""
        here = self._fleet.ps
        counts = sorted({max(1, here // 4), max(1, here // 2), here, 2 * here, 4 * here})
        self._progress(f"{len(counts)} numbers of ps")
        return tuple(
            self._simulate(self._few.replace(ps=ps), best.setting, self._thin) for ps in counts
        )


def _overlaps(policy: str) -> bool:
    """Whether `overlap` has an effect under a policy."""
    return Setting(consistency=policy).policy().kind in ("async", "bounded")


def _sorted(found: Iterable[Prediction]) -> list[Prediction]:
    return sorted(found, key=lambda p: (-p.examples_per_second, level(p.setting), str(p.setting)))


def level(setting: Setting) -> int:
    """How much a setting changes of plain training, from 0 to 6."""
    if setting.policy().kind == "local":
        return 6
    codecs = {setting.push, setting.pull} - {"identity"}
    if not codecs:
        return setting.overlap
    if codecs <= set(_CASTS):
        return 3
    return 4 if codecs <= {*_CASTS, "int8"} else 5


def recommend(
    found: Sequence[Prediction], consistency: str = "async", copies: bool = True
) -> tuple[Prediction, str]:
    """Chooses the plainest setting beyond which nothing gains enough.

    Args:
      found: predictions.
      consistency: the policy that is wanted.
      copies: whether `LocalSteps` may be chosen.

    Returns:
      (the choice, the reason in a line).
    """
    own = [p for p in found if p.setting.consistency == consistency]
    levels: dict[int, Prediction] = {}
    for p in own if not copies else [*own, *(p for p in found if level(p.setting) == 6)]:
        known = levels.get(level(p.setting))
        if known is None or p.examples_per_second > known.examples_per_second:
            levels[level(p.setting)] = p
    order = sorted(levels)
    chosen = plain = levels[order[0]]
    for step in order[1:]:
        rival = levels[step]
        worth = WORTH_OF_COPIES if step == 6 and order[0] != 6 else WORTH
        if rival.examples_per_second >= worth * chosen.examples_per_second:
            chosen = rival
    return chosen, _reason(chosen, plain, levels)


def _reason(chosen: Prediction, plain: Prediction, levels: dict[int, Prediction]) -> str:
    def gain(of: Prediction, over: Prediction) -> float:
        return of.examples_per_second / over.examples_per_second

    others = [p for step, p in levels.items() if step > level(chosen.setting)]
    best = max(others, key=lambda p: p.examples_per_second, default=None)
    further = ""
    if best is not None:
        further = f"; {best.setting} would make {gain(best, chosen) - 1:+.0%}"
    codecs = {chosen.setting.push, chosen.setting.pull} - {"identity"}
    if level(chosen.setting) == 6:
        return (
            f"train on copies ({chosen.setting}): {gain(chosen, plain):.1f} times as fast as plain "
            f"training, whose limit is {plain.limit}"
        )
    if not codecs:
        coded = [p for step, p in levels.items() if step in (3, 4, 5)]
        best = max(coded, key=lambda p: p.examples_per_second, default=None)
        why = f"what limits a step is {chosen.limit}"
        if best is not None:
            why += (
                f", and the best codec ({best.setting}) would make {gain(best, chosen) - 1:+.0%}, "
                f"less than the {WORTH - 1:.0%} that it has to be worth"
            )
        first = "do not compress"
        if chosen.setting.overlap:
            first += f", but overlap={chosen.setting.overlap}"
        return f"{first}: {why}"
    return (
        f"{chosen.setting}: {gain(chosen, plain):.1f} times as fast as plain training, whose limit "
        f"is {plain.limit}{further}"
    )
