"""What Slurm's variables say about an allocation: its nodes, and what the job has on each.

The forms are those of sbatch(1), "OUTPUT ENVIRONMENT VARIABLES", and were looked at under Slurm
22.05. Nothing here starts a process.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping

from launch import errors


class SlurmVariableError(errors.SpecificationError):
    """A variable that has none of the forms that Slurm's manual gives it."""


@dataclasses.dataclass(frozen=True)
class Node:
    """What a job has on one node.

    Attributes:
      name: the node's name, which `srun --nodelist` takes.
      group: the component of a heterogeneous job that the node belongs to, or None if the job is
        not heterogeneous.
      tasks: number of tasks that Slurm has counted for the node, or None if unknown. It is unknown
        within a step, whose variables describe the step.
      cpus: number of CPUs of the job on the node, or None if unknown.
      gpus: number of GPUs of the job on the node, or None if the variables do not tell. They do
        not for `sbatch --gres=gpu:2` on other nodes than the one that is asked.
    """

    name: str
    group: int | None
    tasks: int | None
    cpus: int | None
    gpus: int | None


def expand_hosts(text: str) -> list[str]:
    """Returns the names of a host list: `"n[1-2],g[08-09]x"` gives n1, n2, g08x and g09x.

    Raises:
      SlurmVariableError: brackets do not match, or a range is none.
    """
    return [name for part in _split(text) for name in _expand(part, text)]


def expand_counts(text: str) -> list[int]:
    """Returns a number for each node: `"2(x3),1"` gives 2, 2, 2 and 1.

    Raises:
      SlurmVariableError: a part is neither a number nor a number with a repetition.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            raise SlurmVariableError(
                f"{text!r} is no list of counts as Slurm writes it, such as '2(x3),1'"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def gpu_count(text: str) -> int:
    """Returns the number of GPUs in `"4"`, `"a100:4"`, `"gpu:a100:4(S:0-1)"` or `"a100:2,v100:1"`.

    Other generic resources in the list (`"gpu:2,nvme:1"`) do not count. A type without a number is
    one GPU, as for Slurm.

    Raises:
      SlurmVariableError: a part has more fields than kind, type and number.
    """
    total = 0
    for part in _split(text, brackets="()"):
        fields = re.sub(r"\(.*\)", "", part).strip().removeprefix("gres/").split(":")
        if len(fields) > 3 or not all(fields):
            raise SlurmVariableError(f"{text!r} is no number of GPUs such as '4' or 'a100:4'")
        number = int(fields.pop()) if fields[-1].isdigit() else 1
        # With three fields, or in a list with the kind "gpu", the first field is the kind.
        if "gpu" in fields[:1] or not _names_a_kind(text):
            total += number
    return total


def gpu_indices(text: str) -> list[int]:
    """Returns the numbers of `SLURM_JOB_GPUS` or `SLURM_STEP_GPUS`: `"0,2-3"` gives 0, 2 and 3.

    Raises:
      SlurmVariableError: a part is neither a number nor a range.
    """
    found = [n for part in text.split(",") for n in _range(part.strip(), text)]
    return [int(n) for n in found]


def allocation(environ: Mapping[str, str]) -> list[Node]:
    """Returns the nodes of the job that the variables describe, in Slurm's order.

    Args:
      environ: variables of a batch script, of `salloc`'s shell, or of a step.

    Raises:
      SlurmVariableError: there is no allocation, or a variable cannot be read.
    """
    size = environ.get("SLURM_HET_SIZE")
    if size is None:
        return _component(environ, "", None)
    groups = range(int(size))
    return [n for g in groups for n in _component(environ, f"_HET_GROUP_{g}", g)]


def gpus_by_node(job: str) -> dict[str, int]:
    """Returns the GPUs on each node that `scontrol show job --details` lists.

    Args:
      job: the command's output. A node's line is
        `Nodes=n[3-4] CPU_IDs=0-1 Mem=0 GRES=gpu:a100:2(IDX:0-1)`.
    """
    found: dict[str, int] = {}
    for nodes, gres in re.findall(r"^\s*Nodes=(\S+) CPU_IDs=\S* Mem=\S* GRES=(\S*)", job, re.M):
        gpus = ",".join(g for g in _split(gres, brackets="()") if g.startswith("gpu"))
        found |= dict.fromkeys(expand_hosts(nodes), gpu_count(gpus) if gpus else 0)
    return found


def node_addresses(text: str) -> dict[str, str]:
    """Returns the address of each node that `scontrol show node --oneliner` lists.

    Slurm itself reaches a node by it; the node's name need not be one that other nodes know.
    """
    return dict(re.findall(r"^NodeName=(\S+) .*?\bNodeAddr=(\S+)", text, re.MULTILINE))


def _component(environ: Mapping[str, str], suffix: str, group: int | None) -> list[Node]:
    """The nodes of a job, or of one component of a heterogeneous job."""
    listed = environ.get(f"SLURM_JOB_NODELIST{suffix}") or environ.get(f"SLURM_NODELIST{suffix}")
    if not listed:
        raise SlurmVariableError(
            f"SLURM_JOB_NODELIST{suffix} is not set; start this within sbatch or salloc"
        )
    names = expand_hosts(listed)
    tasks = _counts(environ, f"SLURM_TASKS_PER_NODE{suffix}", len(names))
    cpus = _counts(environ, f"SLURM_JOB_CPUS_PER_NODE{suffix}", len(names))
    gpus = [_gpus(environ, suffix, name, t) for name, t in zip(names, tasks, strict=True)]
    return [
        Node(name, group, t, c, g) for name, t, c, g in zip(names, tasks, cpus, gpus, strict=True)
    ]


def _counts(environ: Mapping[str, str], name: str, nodes: int) -> list[int | None]:
    """A number for each node; Nones if the variable is not there, or speaks of other nodes."""
    counts = expand_counts(environ[name]) if environ.get(name) else []
    return [*counts] if len(counts) == nodes else [None] * nodes


def _gpus(environ: Mapping[str, str], suffix: str, node: str, tasks: int | None) -> int | None:
    """The GPUs of one node, by what was asked for or, on this node, by what there is."""
    per_node = environ.get(f"SLURM_GPUS_PER_NODE{suffix}")
    if per_node:
        return gpu_count(per_node)
    per_task = environ.get(f"SLURM_GPUS_PER_TASK{suffix}")
    if per_task and tasks is not None:
        return gpu_count(per_task) * tasks
    if not suffix and node == environ.get("SLURMD_NODENAME") and environ.get("SLURM_JOB_GPUS"):
        return len(gpu_indices(environ["SLURM_JOB_GPUS"]))
    return None


def _names_a_kind(text: str) -> bool:
    """Whether a list of resources says of each part what kind it is, as `--gres` does."""
    return any(p.strip().removeprefix("gres/").startswith("gpu") for p in text.split(","))


def _split(text: str, brackets: str = "[]") -> list[str]:
    """Splits at the commas that are outside of brackets."""
    opening, closing = brackets[0], brackets[1]
    parts, depth, current = [], 0, ""
    for c in text.strip():
        depth += (c == opening) - (c == closing)
        if depth not in (0, 1):
            raise SlurmVariableError(f"{text!r} has brackets that do not match")
        if c == "," and not depth:
            parts.append(current)
            current = ""
        else:
            current += c
    if depth:
        raise SlurmVariableError(f"{text!r} has brackets that do not match")
    return [p.strip() for p in [*parts, current] if p.strip()]


def _expand(part: str, text: str) -> list[str]:
    """The names of a part of a host list, which may have several brackets."""
    pieces = re.split(r"\[([^]]*)\]", part)  # Text and ranges in turn.
    choices = [
        [n for r in piece.split(",") for n in _range(r.strip(), text)] if i % 2 else [piece]
        for i, piece in enumerate(pieces)
    ]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _range(part: str, text: str) -> list[str]:
    """The numbers of `"7"` or `"08-10"`, with the zeros in front that the first has."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
    if not match or int(match[2] or match[1]) < int(match[1]):
        raise SlurmVariableError(f"{part!r} in {text!r} is neither a number nor a range like 1-3")
    first, last = int(match[1]), int(match[2] or match[1])
    return [f"{n:0{len(match[1])}d}" for n in range(first, last + 1)]
