"""A host on which tasks may run, and the command that starts the agent there.

The agent's source and all that follows, environments included, go over its standard input, so that
no command line shows them.
"""

import base64
import dataclasses
import importlib.resources
import shlex
import zlib


def boot(python: str) -> list[str]:
    """Returns the command that starts an agent, whose source is then sent as the first line."""
    program = (
        "import base64,zlib;"
        'exec(zlib.decompress(base64.b64decode(open(0,"rb",0,closefd=False).readline())))'
    )
    return [python, "-u", "-c", program]


# Makes modules of the agent's sources, where there is no package `launch`.
_UNPACK = """
import sys, types
for name, source in SOURCES.items():
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    exec(compile(source, name, "exec"), module.__dict__)
sys.modules["launch.agent.serving"].Agent().run()
"""

# In the order of their imports.
_MODULES = ("processes", "lines", "ports", "facts", "keeper", "children", "serving")


def source() -> bytes:
    """Returns the agent's source as the line that `boot` expects."""
    folder = importlib.resources.files("launch.agent")
    sources = {"launch": "", "launch.agent": ""}
    for name in _MODULES:
        sources[f"launch.agent.{name}"] = folder.joinpath(f"{name}.py").read_text("utf-8")
    program = f"SOURCES = {sources!r}\n{_UNPACK}"
    return base64.b64encode(zlib.compress(program.encode(), 9)) + b"\n"


@dataclasses.dataclass(frozen=True)
class Machine:
    """A host on which tasks may run.

    Attributes:
      name: as messages call it.
      address: the name or address by which other hosts reach it.
      transport: the command that runs another command there, such as `("ssh", "n1")`; empty if the
        host is this one.
      through_shell: whether a shell on the host takes the command apart, as with ssh.
      python: the Python that runs the agent and, where the program begins with "python", the tasks.
      folder: the working folder of tasks.
      slots: workers that it takes; None for as many as wanted.
      gpus: GPUs that it should have; None for what is found.
      roles: which roles may run there; empty for all.
      remote: whether silence means that the host is gone; for a pipe on this machine it does not.
    """

    name: str
    address: str
    python: str
    folder: str
    transport: tuple[str, ...] = ()
    through_shell: bool = False
    slots: int | None = None
    gpus: int | None = None
    roles: tuple[str, ...] = ()
    remote: bool = True

    @property
    def command(self) -> list[str]:
        """The command that starts this machine's agent."""
        command = boot(self.python)
        if self.through_shell:
            command = ["exec " + shlex.join(command)]
        return [*self.transport, *command]
