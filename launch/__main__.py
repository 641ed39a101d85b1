"""Starts a cluster: every task of a job by one command.

  python -m launch local --workers=4 --ps=2 -- python -m models.gpt --epochs=1
  python -m launch ssh --hosts=hosts.txt --workers=8 --ps=2 -- python -m models.gpt
  python -m launch slurm --workers=8 --ps=2 --gpus_per_worker=1 -- python -m models.gpt
  python -m launch kubernetes --workers=8 --ps=2 --image=gpt:1 --apply -- python -m models.gpt

What follows `--` runs as every task; TF_CONFIG tells it which one it is. `python` there stands for
the Python of the launcher, or that of --python on other hosts.
"""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from absl import flags

from launch import errors, exit_codes, flags as common
from launch.job import Job
from launch.launcher import Launcher

LAUNCHERS = ("local", "ssh", "slurm", "kubernetes")


def main(argv: Sequence[str]) -> int:
    """Runs the launcher; returns the exit code.

    Args:
      argv: the command line, without the program's name.
    """
    try:
        if not argv or argv[0] in ("-h", "--help", "-help"):
            print(f"{__doc__}\n`launch {LAUNCHERS[0]} --help` lists the flags.")
            return exit_codes.DONE if argv else exit_codes.FLAGS
        module, program = _parsed(argv)
        if module is None:
            return exit_codes.DONE
        if not program:
            return module.stop()
        # A launcher may hand the job over, to sbatch or to Kubernetes.
        code = module.run(program) if hasattr(module, "run") else None
        if code is None:
            code = supervise(module.make(program))
            code = module.after(code) if hasattr(module, "after") else code
        return code
    except errors.LaunchError as e:
        for line in str(e).splitlines():
            print(f"error: {line}", file=sys.stderr, flush=True)
        return e.code
    except KeyboardInterrupt:  # Before a job that would have ended in order.
        return 128 + signal.SIGINT


def _parsed(argv: Sequence[str]):
    """Returns the launcher's module and the program, with the flags parsed.

    The module is None for --help; the program is empty for `stop`.
    """
    name, *rest = argv
    if name not in LAUNCHERS:
        raise errors.FlagError(
            f"{name!r} is no launcher; choose one of {', '.join(LAUNCHERS)}, as in: launch local "
            "--workers=2 -- python -m models.gpt"
        )
    module = importlib.import_module(f"launch.{name}")
    own = rest[: rest.index("--")] if "--" in rest else rest
    if {"-h", "--help", "-help", "--helpfull"} & set(own):
        print(__doc__)
        print(module.FLAGS.module_help(module))
        print(common.FLAGS.module_help(common))
        return None, []
    try:
        others = module.FLAGS([f"launch {name}", *own])[1:]
        common.FLAGS.mark_as_parsed()  # They are among the launcher's.
    except flags.Error as e:
        raise errors.FlagError(f"{e}; `launch {name} --help` lists the flags") from e
    program = rest[len(own) + 1 :]
    if others == ["stop"] and hasattr(module, "stop"):
        return module, []
    if others or not program:
        wrong = f"unexpected {others[0]!r} before" if others else "there is no program after"
        raise errors.FlagError(
            f"{wrong} `--`; write it as in: launch {name} --workers=2 -- python -m models.gpt"
        )
    return module, program


def supervise(launcher: Launcher) -> int:
    """Runs the job that the flags describe by a launcher; returns the exit code.

    Raises:
      LaunchError: the job could not begin.
    """
    roles = common.roles()
    if common.FLAGS.dry_run:
        try:
            print(launcher.check(roles).table())
        finally:
            launcher.close()
        return exit_codes.DONE
    output = common.output()
    job = Job(launcher, roles, common.policy(), output)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # As under nohup.
            signal.signal(signum, lambda number, _: job.tell(number))
    # A launcher that is suspended would be given up by the agents.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        return job.run()
    finally:
        output.close()


def run() -> None:
    """Runs the launcher as a program."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # As in `launch local --help | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.stderr.flush()
    sys.exit(code)


if __name__ == "__main__":
    run()
