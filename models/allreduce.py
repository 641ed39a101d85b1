"""Training without parameter servers, for comparison: `--strategy`.

`mirrored` is TensorFlow's MirroredStrategy with Keras's own `fit`, in one process with several
devices. `multiworker` is MultiWorkerMirroredStrategy, a process for each worker, with the loop of
`multiworker.py`. `keras` is plain Keras in one process (`plain.py`).
"""

import contextlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable

import keras
import tensorflow as tf
from absl import flags

from models import _tf, plain, watchdog, workers
from models.multiworker import Trainer
from models.way import DatasetFn
from tfps import ConfigError, Context, Error, errors, exit_codes

FLAGS = flags.FLAGS

flags.DEFINE_enum(
    "strategy",
    "ps",
    ["ps", "mirrored", "multiworker", "keras"],
    "Parameter servers; or, for comparison, TensorFlow's all-reduce: MirroredStrategy over the "
    "devices of this process, or MultiWorkerMirroredStrategy over the workers of TF_CONFIG; or "
    "plain Keras in this process.",
)
flags.DEFINE_integer(
    "devices",
    None,
    "Devices of --strategy=mirrored. Default: all GPUs; without a GPU, 2 logical CPU devices.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "communication",
    "auto",
    ["auto", "ring", "nccl"],
    "How --strategy=multiworker adds gradients up: TensorFlow's choice, gRPC in a ring, or NCCL.",
)
flags.DEFINE_float(
    "collective_timeout",
    300.0,
    "Seconds that one call of --strategy=multiworker may take, compiling included, before the "
    "other workers are taken for lost.",
    lower_bound=1.0,
)

# Flags that mean something with parameter servers only, wherever a binary defines them.
_OF_PS = (
    *("workers", "ps", "cluster", "devices_per_worker"),
    *(
        "network",
        "push",
        "push_warmup",
        "pull",
        "consistency",
        "overlap",
        "sparse_updates",
        "partitioner",
    ),
    *(
        "snapshots",
        "snapshot_every",
        "snapshot_copies",
        "min_workers",
        "task_timeout",
        "on_lost_ps",
    ),
    *("spare", "ledger", "profile"),
)
_OF = {"devices": "mirrored", "communication": "multiworker", "collective_timeout": "multiworker"}

# What TensorFlow raises in a worker whose peer is gone.
_PEER_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


class Mirrored:
    """The `Way` of `--strategy=mirrored`: Keras's own `fit` on several devices of this process."""

    chief = True

    def __init__(self, devices: list[str] | None = None):
        """Makes the strategy.

        Args:
          devices: names of devices such as "CPU:1". None takes all GPUs.
        """
        self.strategy = tf.distribute.MirroredStrategy(devices)
        self.batches_per_step = self.strategy.num_replicas_in_sync

    def scope(self) -> contextlib.AbstractContextManager:
        return self.strategy.scope()

    def describe(self) -> str:
        return f"each of {self.batches_per_step} devices (all-reduce in one process)"

    def updates(self, steps: int) -> int:
        return steps

    def reading(self, dataset_fn: DatasetFn) -> tf.data.Dataset:
        return dataset_fn(Context(worker_index=0, num_workers=1))

    def trainer(self, model: keras.Model) -> keras.Model:
        check_model(model)
        # Keras 3.15's loop over several steps fails under this strategy with TensorFlow 2.21: "You
        # must feed a value for placeholder tensor".
        model.steps_per_execution = 1
        # Keras says of every dataset that it is not shuffled again.
        warnings.filterwarnings("ignore", "`shuffle=True` was passed", UserWarning)
        return model

    def callbacks(self, log_dir: str) -> list[keras.callbacks.Callback]:
        return []

    def traffic(self, trainer: keras.Model) -> str:
        return ""

    def path(self, path: str) -> str:
        return path


class MultiWorker:
    """The `Way` of `--strategy=multiworker`: a replica of the model in each worker's process."""

    def __init__(
        self,
        found: workers.Workers,
        watch: watchdog.Watchdog,
        startup_timeout: float,
        scratch: str,
    ):
        """Waits for all workers.

        Args:
          found: the workers.
          watch: ends this process when a call takes longer than --collective_timeout.
          startup_timeout: seconds that the workers may take to come.
          scratch: a folder for what a worker writes that is not the chief. TensorFlow's guide has
            all workers save, since reading some variables is an operation of all of them.
        """
        self._workers, self._watch = found, watch
        self.chief = found.chief
        self._scratch = scratch
        kind = tf.distribute.experimental.CommunicationImplementation
        options = tf.distribute.experimental.CommunicationOptions(
            implementation=kind[FLAGS.communication.upper()],
            timeout_seconds=FLAGS.collective_timeout,
        )
        resolver = found.resolver()
        _tf.limit_startup(resolver.cluster_spec(), startup_timeout)
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy(
            resolver, communication_options=options
        )
        self.batches_per_step = self.strategy.num_replicas_in_sync

    def scope(self) -> contextlib.AbstractContextManager:
        return self.strategy.scope()

    def describe(self) -> str:
        return f"each of {self.batches_per_step} replicas (all-reduce, {FLAGS.communication})"

    def updates(self, steps: int) -> int:
        return steps

    def reading(self, dataset_fn: DatasetFn) -> tf.data.Dataset:
        return dataset_fn(Context(worker_index=0, num_workers=1))

    def trainer(self, model: keras.Model) -> Trainer:
        check_model(model)
        return Trainer(model, self.strategy, self._limit)

    def callbacks(self, log_dir: str) -> list[keras.callbacks.Callback]:
        return []

    def traffic(self, trainer: Trainer) -> str:
        return ""

    def path(self, path: str) -> str:
        if self.chief:
            return path
        return os.path.join(self._scratch, os.path.basename(path))

    def _limit(self, what: str) -> contextlib.AbstractContextManager:
        return self._watch.limit(
            FLAGS.collective_timeout,
            lambda: (
                f"{what} from {self._workers.silent() or 'another worker'} "
                "(--collective_timeout); start the job again"
            ),
        )


def run(train: Callable[[Callable], None], startup_timeout: float) -> int:
    """Runs this process's part of an all-reduce, or plain Keras.

    Args:
      train: what every process runs; it is given a function that returns the `Way`.
      startup_timeout: seconds that the workers of an all-reduce may take to come.

    Returns:
      The exit code, one of `tfps.exit_codes`; unless it is 0, after one line about what went wrong.
      When another worker is lost, the process ends with 75 after one line, and the function does
      not return.
    """
    try:
        check_flags()
        if FLAGS.strategy in ("mirrored", "keras"):
            way = plain.Plain() if FLAGS.strategy == "keras" else Mirrored(_devices())
            train(lambda: way)
        else:
            _run_worker(train, workers.from_env(), startup_timeout)
        return exit_codes.DONE
    except Error as e:
        failure, code = str(e), exit_codes.of(e)
    except tf.errors.OpError as e:
        failure, code = errors.summary(e.message), exit_codes.FAILED
    except KeyboardInterrupt:
        failure, code = "interrupted", exit_codes.FAILED
    print(f"error: {failure}", file=sys.stderr, flush=True)
    return code


def _run_worker(train: Callable[[Callable], None], found: workers.Workers, timeout: float) -> None:
    with _scratch(found) as scratch:

        def give_up(message: str) -> None:
            if scratch:
                shutil.rmtree(scratch, ignore_errors=True)
            watchdog.give_up(message)

        watch = watchdog.Watchdog(give_up, ends_by_sigterm=True)
        try:
            way = MultiWorker(found, watch, timeout, scratch)
        except _PEER_LOST:
            who = found.silent() or "some of the workers"
            give_up(
                f"no answer within {timeout:g} s from {who} (--startup_timeout); start the missing "
                "workers, or check the addresses in TF_CONFIG"
            )
        try:
            train(lambda: way)
        except _PEER_LOST as e:
            give_up(f"{found.lost(e.message)}; start the job again")


def _scratch(found: workers.Workers) -> contextlib.AbstractContextManager[str]:
    """A folder for what a worker writes that is not the chief; the chief needs none."""
    if found.chief:
        return contextlib.nullcontext("")
    return tempfile.TemporaryDirectory(prefix="tfps-worker-")


def check_flags() -> None:
    """Checks that no flag was given that has no meaning with --strategy.

    Raises:
      ConfigError: names the flag.
    """
    way = FLAGS.strategy
    for name in _OF_PS if way != "ps" else ():
        if name in FLAGS and FLAGS[name].present:
            raise ConfigError(
                f"--{name}={FLAGS[name].value} is for parameter servers, and has no meaning with "
                f"--strategy={way}; leave it out, or use --strategy=ps"
            )
    for name, its in _OF.items():
        if way != its and FLAGS[name].present:
            raise ConfigError(
                f"--{name}={FLAGS[name].value} is for --strategy={its}; this is --strategy={way}"
            )
    if way in ("mirrored", "keras") and os.environ.get("TF_CONFIG"):
        raise ConfigError(
            f"TF_CONFIG is set, but --strategy={way} is one process; unset it, or use "
            "--strategy=multiworker"
        )


def check_model(model: keras.Model) -> None:
    """Checks that a compiled model trains as it would in one process.

    Raises:
      ConfigError: the loss is scaled. Keras 3 decides by the gradients of the first replica alone
        whether they are finite, before gradients are added up.
    """
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        raise ConfigError(
            "float16 needs a scaled loss, and under all-reduce Keras looks for overflow in the "
            "first replica only; use bfloat16 or float32, or --strategy=ps"
        )


def _devices() -> list[str]:
    """The devices of --strategy=mirrored."""
    gpus = tf.config.list_physical_devices("GPU")
    count = FLAGS.devices or len(gpus) or 2
    if not gpus:
        return logical_devices(count)
    if count > len(gpus):
        raise ConfigError(f"--devices={count}, but this host has {len(gpus)} GPUs; ask for fewer")
    return [f"GPU:{i}" for i in range(count)]


def logical_devices(count: int) -> list[str]:
    """Makes CPU devices, before anything else has used TensorFlow's runtime; returns their names.

    Args:
      count: number of devices, which share the host's cores.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
    )
    return [f"CPU:{i}" for i in range(count)]
