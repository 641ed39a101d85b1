"""The errors of launchers. Each knows the exit code with which the launcher ends."""

from launch import exit_codes


class LaunchError(Exception):
    """Base class of what a launcher raises on purpose; one line with value, constraint, remedy."""

    code = exit_codes.FAILED


class FlagError(LaunchError):
    """A flag, or the command line as a whole, is wrong."""

    code = exit_codes.FLAGS


class SpecificationError(LaunchError):
    """The job as described cannot run on the hosts as they are."""

    code = exit_codes.CLUSTER


class ProgramError(LaunchError):
    """The program is not there, or cannot be started."""

    code = exit_codes.NOT_FOUND


class HostError(LaunchError):
    """A host cannot be reached, or does not answer."""

    code = exit_codes.LOST
