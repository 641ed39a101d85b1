"""`launch ssh`: tasks run on the hosts of a file, reached by the user's own ssh.

Everything that the user has configured for ssh counts: aliases, keys, agents, jump hosts and known
hosts. ssh never asks a question here (BatchMode), and no check of it is switched off.
"""

import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from launch import checks, errors, flags as common, host_flags
from launch.launcher import Launcher
from launch.machine import Machine
from launch.topology import ROLES

FLAGS = flags.FlagValues()  # Those of the launcher, and then those of all launchers.

flags.DEFINE_string(
    "hosts", None, "File of hosts: a line each, `name slots=4 gpus=8 address=…`.", flag_values=FLAGS
)
flags.DEFINE_string(
    "python",
    sys.executable,
    "Python on the hosts. Default: the path of the launcher's own.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "chdir",
    None,
    "Working folder on the hosts. Default: the path of the launcher's own.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "rsync",
    False,
    "Copy the working folder to the hosts first, but for what .gitignore names and .git itself.",
    flag_values=FLAGS,
)
host_flags.define(FLAGS)
flags.DEFINE_string("ssh", "ssh", "The ssh command, with options if needed.", flag_values=FLAGS)
FLAGS.append_flag_values(common.FLAGS)

_KEYS = ("slots", "gpus", "address", "python", "folder", "roles")
_COPY = 600.0  # s that rsync may take
# They keep ssh from asking, and from waiting for a host that is gone. Of an option's values ssh
# takes the first: --ssh comes before these, and these before the user's configuration.
_OPTIONS = (
    *("-T", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=8"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What holds for hosts about which the file says nothing else.

    Attributes:
      python: the Python there.
      folder: the working folder of tasks.
      ssh: the ssh command.
    """

    python: str
    folder: str
    ssh: tuple[str, ...] = ("ssh",)


def make(argv: Sequence[str]) -> Launcher:
    """Returns the launcher that the flags describe.

    Args:
      argv: the program and its arguments.

    Raises:
      FlagError: a flag is missing or wrong.
      SpecificationError: the hosts file is wrong.
      HostError: rsync failed.
    """
    if not FLAGS.hosts:
        raise errors.FlagError("--hosts is missing; name a file with a line for each host")
    try:
        text = pathlib.Path(FLAGS.hosts).read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise errors.FlagError(f"--hosts={FLAGS.hosts}: cannot be read: {e}") from e
    ssh = tuple(shlex.split(FLAGS.ssh))
    machines = parse(text, FLAGS.hosts, Defaults(FLAGS.python, FLAGS.chdir or os.getcwd(), ssh))
    if FLAGS.rsync and not FLAGS.dry_run:
        copy(os.getcwd(), machines)
    return host_flags.launcher(machines, argv, FLAGS)


def parse(text: str, file: str, defaults: Defaults) -> list[Machine]:
    """Reads a hosts file.

    A line is a host's name, as ssh knows it, and settings: `slots` (workers that it takes), `gpus`
    (GPUs that it should have), `address` (by which other hosts reach it), `python`, `folder`, and
    `roles` (such as `chief,ps`). What follows `#` is a comment.

    Args:
      text: the file's text.
      file: its name, for errors.
      defaults: what holds where the file says nothing.

    Raises:
      SpecificationError: names file, line, key, and what to write instead.
    """
    machines: dict[str, Machine] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"{file}, line {number}"
        name = words[0]
        if name.startswith("-") or "=" in name:
            raise errors.SpecificationError(
                f"{where}: it begins with {name!r}; begin with the host's name, such as "
                "`n1 slots=4`"
            )
        if name in machines:
            raise errors.SpecificationError(
                f"{where}: host {name!r} is there already; give it one line, with more slots"
            )
        machines[name] = _machine(name, _settings(words[1:], where), where, defaults)
    if not machines:
        raise errors.SpecificationError(f"{file} names no host; write a line for each, as `n1`")
    return list(machines.values())


def _settings(words: Sequence[str], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in _KEYS:
            raise errors.SpecificationError(
                f"{where}: {word!r} is no setting; write key=value with one of {', '.join(_KEYS)}"
            )
        if key in found or not value:
            problem = "is there twice" if key in found else "has no value"
            raise errors.SpecificationError(f"{where}: {key} {problem}; write {key}=value once")
        found[key] = value
    return found


def _machine(name: str, settings: Mapping[str, str], where: str, defaults: Defaults) -> Machine:
    roles = tuple(settings.get("roles", "").split(",")) if "roles" in settings else ()
    for role in roles:
        if role not in ROLES:
            raise errors.SpecificationError(
                f"{where}: roles has {role!r}; write some of {', '.join(ROLES)}, such as "
                "roles=chief,ps"
            )
    return Machine(
        name=name,
        address=settings.get("address") or address_of(name, defaults.ssh),
        python=settings.get("python", defaults.python),
        folder=settings.get("folder", defaults.folder),
        transport=(*defaults.ssh, *_OPTIONS, "--", name),
        through_shell=True,
        slots=_number("slots", settings, where),
        gpus=_number("gpus", settings, where),
        roles=roles,
    )


def _number(key: str, settings: Mapping[str, str], where: str) -> int | None:
    if key not in settings:
        return None
    if not re.fullmatch(r"\d{1,6}", settings[key]):
        raise errors.SpecificationError(
            f"{where}: {key}={settings[key]} is no number; write {key}=4"
        )
    return int(settings[key])


def address_of(name: str, ssh: Sequence[str] = ("ssh",)) -> str:
    """Returns the name or address to which ssh's configuration leads; it connects to nobody."""
    try:
        done = subprocess.run(
            [*ssh, "-G", "--", name],
            capture_output=True,
            text=True,
            timeout=10,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return name.rpartition("@")[2]
    found = re.search(r"^hostname (.+)$", done.stdout, re.MULTILINE)
    return found[1].strip() if found else name.rpartition("@")[2]


def copy(folder: str, machines: Sequence[Machine]) -> None:
    """Copies a folder to all machines at once, to the folder in which their tasks run.

    What .gitignore files name is left out, and nothing is deleted there. A signal that ends the
    launcher ends the copies, too.

    Raises:
      HostError: names the hosts on which it failed.
    """
    failed: dict[str, errors.HostError] = {}
    copies: list[subprocess.Popen] = []

    def to(machine: Machine) -> None:
        *command, _, name = machine.transport
        try:
            process = subprocess.Popen(
                [
                    *("rsync", "--archive", "--mkpath", "--exclude=.git"),
                    *("--filter=:- .gitignore", "-e", shlex.join(command)),
                    *(f"{folder}/", f"{name}:{machine.folder}/"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            copies.append(process)
            said = process.communicate(timeout=_COPY)[1]
            why = said.strip().replace("\n", "; ") if process.returncode else None
        except FileNotFoundError:
            why = "there is no rsync here; install it"
        except subprocess.TimeoutExpired:
            why = f"not done within {_COPY:g} s"
        if why is not None:
            failed[name] = errors.HostError(f"host {name}: rsync failed: {why}")

    signals = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, lambda number, _: sys.exit(128 + number)) for s in signals}
    try:
        checks.at_once(to, machines, _COPY + 1)
    finally:
        for process in copies:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if failed:
        raise checks.together(failed)
