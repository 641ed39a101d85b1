"""What is compared: one table of systems, and the bars they are held to."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class System:
    """One way of training.

    Attributes:
      name: as in the tables.
      family: systems of a family share their processes: `tfps`, `stock`, `mwms` or `ddp`.
      settings: what its program is told.
      lossless: whether gradients and weights arrive as they were sent.
    """

    name: str
    family: str
    settings: dict
    lossless: bool


def _tfps(push: str, pull: str, overlap: int, xla: bool = False, lazy: bool = False) -> System:
    name = f"tfps {push} / {pull}, overlap {overlap}"
    name += ", XLA" * xla + ", lazy rows" * lazy
    settings = {"push": push, "pull": pull, "overlap": overlap, "xla": xla}
    settings["sparse_updates"] = "lazy" if lazy else "exact"
    return System(name, "tfps", settings, push == pull == "identity")


CUSTOM_LOOP = "stock PSS, custom loop"

SYSTEMS = (
    _tfps("identity", "identity", 0),
    _tfps("identity", "identity", 1),
    _tfps("identity", "identity", 2),
    _tfps("float16", "float16", 2),
    _tfps("bfloat16", "bfloat16", 2),
    _tfps("int8", "int8", 2),
    _tfps("int8", "int8", 2, xla=True, lazy=True),
    _tfps("ternary", "int8", 2, xla=True, lazy=True),
    _tfps("onebit", "int8", 2),
    _tfps("topk:0.01", "int8", 2),
    _tfps("randomk:0.1", "int8", 2, xla=True, lazy=True),
    _tfps("dgc:0.01", "int8", 2),
    _tfps("powersgd:4", "int8", 2),
    System(CUSTOM_LOOP, "stock", {"loop": "custom"}, True),
    System("stock PSS, tf_keras fit", "stock", {"loop": "fit"}, True),
    System("MultiWorkerMirroredStrategy, ring", "mwms", {}, True),
    System("PyTorch DDP", "ddp", {"hook": "none"}, True),
    System("PyTorch DDP, fp16", "ddp", {"hook": "fp16"}, False),
    System("PyTorch DDP, PowerSGD 4", "ddp", {"hook": "powersgd"}, False),
)

# The Python module that a family cannot do without.
NEEDS = {"tfps": "tensorflow", "stock": "tf_keras", "mwms": "tf_keras", "ddp": "torch"}


def select(wanted: list[str], systems=SYSTEMS) -> list[System]:
    """The systems whose name or family contains one of `wanted`; all of them if it is empty."""
    if not wanted:
        return list(systems)
    return [s for s in systems if any(w in s.name or w in s.family for w in wanted)]


@dataclasses.dataclass(frozen=True)
class Bar:
    """What tfps is to reach on a link.

    Attributes:
      link: a bandwidth as in `--bandwidth`.
      codec: judge the fastest tfps of all; otherwise, the fastest lossless one.
      against: the family to be faster than, by its fastest member; or one system's name.
      ratio: how many times faster.
    """

    link: str
    codec: bool
    against: str
    ratio: float


BARS = (
    Bar("1gbit", False, CUSTOM_LOOP, 1.4),
    Bar("1gbit", True, CUSTOM_LOOP, 2.2),
    Bar("1gbit", True, "ddp", 1.0),
    Bar("100mbit", False, CUSTOM_LOOP, 1.4),
    Bar("100mbit", True, CUSTOM_LOOP, 5.0),
    Bar("none", False, CUSTOM_LOOP, 1.1),
)
