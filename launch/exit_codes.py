"""What the exit code of a task, or of the launcher, means. `tfps.exit_codes` has the same table."""

import signal

DONE = 0
FAILED = 1  # The program's own error: the same again would fail again.
FLAGS = 2
CLUSTER = 3  # The specification of the cluster: TF_CONFIG, a hosts file, what hosts can give.
LOST = 75  # A peer was lost or did not come: start me again.
TERMINATED = 143  # Ended by SIGTERM, after what had to be saved or handed back.

# The codes by which a shell says that a command was found but not executable, or not found.
NOT_EXECUTABLE = 126
NOT_FOUND = 127


def of_status(status: int) -> int:
    """Returns the exit code of a process as a shell would.

    Args:
      status: what a process ended with; `-n` if signal n ended it, as in `subprocess`.
    """
    return 128 - status if status < 0 else status


def may_be_retried(status: int) -> bool:
    """Returns whether a task that ended so may succeed if it is started again.

    Args:
      status: what the task's process ended with; `-n` if signal n ended it.
    """
    # A shell says 128 + n for a command that signal n ended.
    return status < 0 or status == LOST or 128 < status <= 128 + signal.SIGRTMAX


def described(status: int) -> str:
    """Returns words such as "killed by SIGKILL (exit code 137)".

    Args:
      status: what a process ended with; `-n` if signal n ended it.
    """
    if status < 0:
        return f"was killed by {_name(-status)} (exit code {128 - status})"
    meaning = {
        FLAGS: ": its flags are wrong",
        CLUSTER: ": its cluster specification is wrong",
        LOST: ": it lost a peer",
        TERMINATED: ": it was told to end by SIGTERM",
        NOT_EXECUTABLE: ": its command cannot be executed",
        NOT_FOUND: ": its command was not found",
    }.get(status, "")
    return f"ended with exit code {status}{meaning}"


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
