"""The systems that are compared, and the bars that tfps has to reach."""

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class System:
    """One way of training.

    Attributes:
      name: as in the tables.
      family: systems of a family share their processes: `tfps`, `traffic` (tfps with a
        model that hardly computes), `local` (tfps with `LocalSteps`), `alone` (workers that
        never communicate), `stock`, `mwms` or `ddp`.
      settings: what its program is told.
      lossless: whether gradients and weights arrive as they were sent.
      stride: a worker's steps come in so many at a time.
    """

    name: str
    family: str
    settings: dict
    lossless: bool
    stride: int = 1


def _tfps(push: str, pull: str, overlap: int, xla: bool = False, lazy: bool = False) -> System:
    name = f"tfps {push} / {pull}, overlap {overlap}"
    name += ", XLA" * xla + ", lazy rows" * lazy
    settings = {"push": push, "pull": pull, "overlap": overlap, "xla": xla}
    settings["sparse_updates"] = "lazy" if lazy else "exact"
    return System(name, "tfps", settings, push == pull == "identity")


def _traffic(codec: str, overlap: int) -> System:
    whole = _tfps(codec, codec, overlap)
    name = f"{whole.name}, no computing"
    return System(name, "traffic", {**whole.settings, "computes": False}, whole.lossless)


_EXCHANGE = 32  # steps


def _local(merge: str, push: str, pull: str, delay: int) -> System:
    settings = {
        "push": push,
        "pull": pull,
        "overlap": 0,
        "xla": False,
        "sparse_updates": "exact",
        "consistency": f"local:{_EXCHANGE},merge={merge},delay={delay}",
    }
    name = f"tfps LocalSteps({_EXCHANGE}), merge {merge}, delay {delay}, {push} / {pull}"
    return System(name, "local", settings, push == pull == "identity", stride=_EXCHANGE)


CUSTOM_LOOP = "stock PSS, custom loop"

SYSTEMS = (
    _tfps("identity", "identity", 0),
    _tfps("identity", "identity", 1),
    _tfps("identity", "identity", 2),
    _tfps("float16", "float16", 1),
    _tfps("bfloat16", "bfloat16", 1),
    _tfps("int8", "int8", 1),
    _tfps("int8", "int8", 2),
    _tfps("int8", "int8", 1, xla=True, lazy=True),
    _tfps("ternary", "int8", 1, xla=True, lazy=True),
    _tfps("onebit", "int8", 1),
    _tfps("topk:0.01", "int8", 1),
    _tfps("randomk:0.1", "int8", 1, xla=True, lazy=True),
    _tfps("dgc:0.01", "int8", 1),
    _tfps("powersgd:4", "int8", 1),
    _tfps("onebit", "difference:onebit", 1),
    _tfps("onebit", "difference:twobit", 1),
    _tfps("auto", "auto", 1),
    _tfps("powersgd:4", "difference:onebit", 1),
    _tfps("randomk:0.1", "difference:onebit", 1, xla=True, lazy=True),
    _tfps("powersgd:4", "difference:onebit", 1, xla=True, lazy=True),
    _traffic("identity", 2),
    _traffic("int8", 2),
    _local("each", "topk:0.01", "int8", 0),
    _local("each", "topk:0.01", "int8", 16),
    _local("each", "int8", "int8", 16),
    _local("round", "topk:0.01", "int8", 0),
    _local("round", "topk:0.01", "int8", 16),
    System("workers alone", "alone", {}, True, stride=_EXCHANGE),
    System(CUSTOM_LOOP, "stock", {"loop": "custom"}, True),
    System("stock PSS, tf_keras fit", "stock", {"loop": "fit"}, True),
    System("MultiWorkerMirroredStrategy, ring", "mwms", {}, True),
    System("PyTorch DDP", "ddp", {"hook": "none"}, True),
    System("PyTorch DDP, fp16", "ddp", {"hook": "fp16"}, False),
    System("PyTorch DDP, PowerSGD 4", "ddp", {"hook": "powersgd"}, False),
)

# The Python module that each family needs.
NEEDS = {
    "tfps": "tensorflow",
    "traffic": "tensorflow",
    "local": "tensorflow",
    "alone": "tensorflow",
    "stock": "tf_keras",
    "mwms": "tf_keras",
    "ddp": "torch",
}


def available(wanted: list[System], needs: Mapping[str, str] = NEEDS) -> list[System]:
    """The systems whose modules (`needs`, by family) are installed; says which are left out."""
    found = []
    missing: dict[str, list[str]] = {}
    for system in wanted:
        module = needs[system.family]
        if importlib.util.find_spec(module):
            found.append(system)
        else:
            missing.setdefault(module, []).append(system.name)
    for module, names in missing.items():
        print(f"left out, for {module} is not installed: {', '.join(names)}")
    return found


def select(wanted: list[str], systems: Sequence[System] = SYSTEMS) -> list[System]:
    """The systems whose name or family contains one of `wanted`; all of them if it is empty."""
    if not wanted:
        return list(systems)
    return [s for s in systems if any(w in s.name or w in s.family for w in wanted)]


@dataclasses.dataclass(frozen=True)
class Bar:
    """What tfps is to reach on a link.

    Attributes:
      link: a bandwidth as in `--bandwidth`.
      codec: judge the fastest of the family; otherwise, the fastest lossless one.
      against: the family to be faster than, by its fastest member; or one system's name.
      ratio: how many times faster.
      family: that is judged.
    """

    link: str
    codec: bool
    against: str
    ratio: float
    family: str = "tfps"


BARS = (
    Bar("1gbit", False, CUSTOM_LOOP, 1.4),
    Bar("1gbit", True, CUSTOM_LOOP, 2.2),
    Bar("1gbit", True, "ddp", 1.0),
    Bar("100mbit", False, CUSTOM_LOOP, 1.4),
    Bar("100mbit", True, CUSTOM_LOOP, 5.0),
    Bar("100mbit", True, "ddp", 1 / 0.6),
    Bar("100mbit", True, "alone", 0.8, "local"),
    Bar("none", False, CUSTOM_LOOP, 1.1),
)
