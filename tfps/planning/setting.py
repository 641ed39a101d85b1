"""A setting of the Trainer, as the planner compares them."""

import dataclasses
import re

from tfps import errors
from tfps.planning.profile import CodecCost, Profile


@dataclasses.dataclass(frozen=True)
class Setting:
    """What of the Trainer decides how long a step takes.

    Attributes:
      push, pull: texts of codecs.
      overlap: see `tfps.Trainer`.
      consistency: text of a policy: "async", "bounded:2", "sync", "sync:1" or
        "local:32,merge=each,delay=8". Parameters that only concern arithmetic are allowed.
    """

    push: str = "identity"
    pull: str = "identity"
    overlap: int = 0
    consistency: str = "async"

    def __post_init__(self) -> None:
        if self.overlap not in (0, 1, 2):
            raise errors.ConfigError(f"overlap={self.overlap!r} must be 0, 1 or 2")
        self.policy()

    def __str__(self) -> str:
        parts = [f"{self.push} / {self.pull}", self.consistency]
        return ", ".join([*parts, *([f"overlap {self.overlap}"] if self.overlap else [])])

    @property
    def flags(self) -> str:
        """The flags of the binaries for this setting."""
        given = {"consistency": self.consistency, "push": self.push, "pull": self.pull}
        given["overlap"] = str(self.overlap)
        plain = {"consistency": "async", "push": "identity", "pull": "identity", "overlap": "0"}
        chosen = [f"--{name}={value}" for name, value in given.items() if value != plain[name]]
        return " ".join(chosen) or "(no flags: the defaults)"

    def policy(self) -> "Policy":
        """What the text of the policy says.

        Raises:
          ConfigError: there is no such policy.
        """
        return Policy.parse(self.consistency)

    def costs(self, profile: Profile) -> tuple[CodecCost, CodecCost]:
        """(of the push, of the pull), as measured.

        Raises:
          ConfigError: the profile has no such codec.
        """
        found = []
        for way, name, known in (
            ("push", self.push, profile.push),
            ("pull", self.pull, profile.pull),
        ):
            if name not in known:
                raise errors.ConfigError(
                    f"{way}={name!r} was not measured; the profile has {', '.join(known)}: measure "
                    "it anew, or choose one of these"
                )
            found.append(known[name])
        return found[0], found[1]


@dataclasses.dataclass(frozen=True)
class Policy:
    """What the simulation needs to know of a consistency policy.

    Attributes:
      kind: "async", "bounded", "sync" or "local".
      bound: of "bounded", steps.
      backups: of "sync".
      steps: of "local", between two exchanges; otherwise 0.
      delay: of "local", steps.
      in_rounds: whether pushes are added up.
    """

    kind: str
    bound: float = float("inf")
    backups: int = 0
    steps: int = 0
    delay: int = 0
    in_rounds: bool = False

    @classmethod
    def parse(cls, text: str) -> "Policy":
        """Reads a text as the Trainer does, without making optimizers of it.

        Raises:
          ConfigError: there is no such policy.
        """
        kind, _, rest = text.strip().partition(":")
        given = [part.strip() for part in rest.split(",") if part.strip()]
        named = dict(part.split("=", 1) for part in given if "=" in part)
        plain = [part for part in given if "=" not in part]
        try:
            if kind == "async":
                return cls("async")
            if kind == "bounded":
                return cls("bounded", bound=_count(named.get("bound") or plain[0]))
            if kind == "sync":
                backups = named.get("backups") or (plain[0] if plain else "0")
                return cls("sync", backups=_count(backups), in_rounds=True)
            if kind == "local":
                steps = _count(named.get("steps") or plain[0])
                delay = _count(named.get("delay", "0"))
                if not 0 <= delay <= steps or steps < 1:
                    raise ValueError
                rounds = {"round": True, "each": False}[named.get("merge", "round")]
                return cls("local", steps=steps, delay=delay, in_rounds=rounds)
        except (ValueError, IndexError, KeyError):
            pass
        raise errors.ConfigError(
            f"consistency={text!r} is not async, bounded:STEPS, sync, sync:BACKUPS or "
            "local:STEPS[,merge=each|round][,delay=STEPS]; give one of these"
        )


def _count(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise ValueError(text)
    return int(text)
