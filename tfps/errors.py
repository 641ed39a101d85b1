"""The exceptions of tfps.

```
Error
├── ConfigError(ValueError)   what was asked for cannot be: TF_CONFIG, arguments, optimizer, data
│   ├── ClusterConfigError      the description of the cluster
│   └── DataError               the input of fit, evaluate or predict
├── StartupTimeout(TimeoutError)  a task did not answer in time
├── StepTimeout(TimeoutError)     a worker lives, but does not finish a step
├── PortInUse(OSError)        the task's own port is taken
├── WorkerError               the model's code failed on a worker
├── TaskLost                  a worker or parameter server went away while it was needed
├── ChiefLost                 a server saw its chief die
├── SnapshotFailed            a snapshot could not be written
├── SnapshotDamaged           a snapshot is not what was written
└── Superseded                a later chief of the same job writes snapshots
```

Every message gives the value, the constraint and the remedy in one line. Errors of TensorFlow's
runtime are mapped into this tree by `cluster/failures.py`. The result is an instance of
TensorFlow's class too, and the original error is its `__cause__`.
"""

import copyreg
import re


class Error(Exception):
    """Base class of every error that tfps raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        """Has copies and pickles made with the message and the attributes as they are.

        Python would call the class with the message, but a class may have arguments of its own.
        """
        # Typeshed does not know the name, which pickle's documentation gives.
        new = copyreg.__newobj__  # type: ignore[attr-defined]
        return new, (type(self), *self.args), dict(vars(self))


class ConfigError(Error, ValueError):
    """What was asked for cannot be carried out as it stands."""


class ClusterConfigError(ConfigError):
    """The description of a cluster (TF_CONFIG or arguments) is wrong."""


class DataError(ConfigError):
    """The input cannot be trained or evaluated on."""


class StartupTimeout(Error, TimeoutError):
    """A task did not answer within the time given for start-up."""


class StepTimeout(Error, TimeoutError):
    """A worker that answers did not finish a call within the time given for one."""


class PortInUse(Error, OSError):
    """The port on which this task should listen is taken."""


class WorkerError(Error):
    """A call failed on a worker; the message says where, and what TensorFlow says.

    Attributes:
      worker: int, the index of the worker.
      address: str, its `host:port`.
    """

    def __init__(self, worker: int, address: str, message: str):
        """Composes the message from the worker's index, its `host:port` and TensorFlow's words."""
        super().__init__(f"worker {worker} ({address}) failed: {message}")
        self.worker = worker
        self.address = address


class TaskLost(Error):
    """A worker or parameter server became unreachable during a step."""


class ChiefLost(Error):
    """The chief died, or ended with a failure. Servers raise this error."""


class SnapshotFailed(Error):
    """A snapshot could not be written."""


class SnapshotDamaged(Error):
    """A snapshot cannot be read: a file is missing, torn or altered."""


class Superseded(Error):
    """A later chief of the same job has taken over its snapshots; this one has to end."""


_FRAMING = (
    *("Graph execution error", "Detected at node", "File ", "Traceback", "in user code"),
    "<stack traces unavailable>",
)


def summary(message: str | None) -> str:
    """Returns the sentence of a TensorFlow error that says what is wrong, without tracebacks."""
    message = message or "no message"
    if several := re.search(r"root error\(s\) found\.\s*\(0\) \w+:", message):
        message = message[several.end() :].lstrip()
    message = re.sub(r"\{\{function_node [^}]*\}\} ?", "", message)
    lines = []
    for line in message.splitlines():
        text = line.strip()
        if text.startswith(("[[", "Additional GRPC error information", "Stack trace for op")):
            break
        if not text or line.startswith((" ", "\t")) or text.startswith(_FRAMING):
            continue
        lines.append(text)
    last = (message.strip().splitlines() or [""])[-1].strip()
    found = " ".join(dict.fromkeys(lines)) or last
    return re.sub(r"\s*\[Op:\w+\]", "", found)
