"""Flags of the Trainer that decide what crosses the network, and what a run says of its traffic."""

import keras
import tensorflow as tf
from absl import flags

import tfps

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "push",
    "identity",
    "Codec of the gradients, such as int8, topk:0.01 or powersgd:4; an unknown one lists all.",
)
flags.DEFINE_integer(
    "push_warmup",
    0,
    "Updates before the codec of --push begins; from then on the second moments of Adam stay as "
    "they are, which codecs with feedback need. A tenth of the training is a good choice.",
    lower_bound=0,
)
flags.DEFINE_string(
    "pull",
    "identity",
    "Codec of the parameters: float16, bfloat16 or int8, or of their difference from what the "
    "worker holds, such as difference:onebit.",
)
flags.DEFINE_enum(
    "network",
    "as_flagged",
    ["as_flagged", "auto"],
    "auto: --push=auto --pull=auto. The first steps and the links are measured, and codecs chosen "
    "where they pay.",
)
flags.DEFINE_string(
    "consistency",
    "async",
    "Who may step when: async, bounded:2, sync, sync:1 (one worker not waited for), local:16 "
    "(steps between exchanges); an unknown one lists all.",
)
flags.DEFINE_integer(
    "overlap",
    0,
    "Updates of its own that a worker's gradient may miss, so that computing and the network "
    "work at the same time.",
    lower_bound=0,
    upper_bound=2,
)
flags.DEFINE_integer(
    "devices_per_worker",
    None,
    "Devices over which a worker splits each batch. Default: all of its GPUs, or its CPU. A worker "
    "without GPUs gets as many CPU devices, to try it.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "sparse_updates",
    "exact",
    ["exact", "lazy"],
    "Embedding rows that a step did not look up: updated as Keras does, or left alone.",
)
flags.DEFINE_string(
    "snapshots",
    None,
    "Folder of snapshots that the chief and all ps share. The same command goes on from the "
    "newest. A job that came to its end begins anew.",
)
flags.DEFINE_float(
    "snapshot_every", 30.0, "Seconds from one snapshot to the next.", lower_bound=0.0
)
flags.DEFINE_integer(
    "snapshot_copies",
    1,
    "On how many hosts the part of each ps is. With more than 1, --snapshots is a folder on each "
    "host, which need not be shared.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "min_workers", 1, "With fewer living workers, training waits for them.", lower_bound=1
)
flags.DEFINE_float(
    "task_timeout",
    300.0,
    "Seconds to wait for a lost ps, or for workers below --min_workers, to return.",
    lower_bound=0.0,
)
flags.DEFINE_enum(
    "on_lost_ps",
    "wait",
    ["wait", "reshard"],
    "A ps that does not return is waited for, or another ps takes its part as well.",
)
flags.DEFINE_list(
    "spare",
    [],
    "Addresses, HOST:PORT, of servers that wait to take a lost ps's place, beyond the cluster's "
    "tasks `spare`.",
)
flags.DEFINE_string(
    "profile",
    None,
    "Do not train: measure in about a minute what a step costs, on a cluster of 1 worker and 1 ps "
    "on this machine, and write it to this file, for python -m tfps.plan.",
)
flags.DEFINE_string(
    "ledger",
    None,
    "Folder in which the chief and all ps note what becomes of each batch; `python -m tfps.ledger "
    "check FOLDER` reads it. For finding faults: every push costs a line.",
)
flags.DEFINE_enum(
    "partitioner",
    "none",
    ["none", "balanced"],
    "How variables are split over the ps: not at all, or so that all ps hold the same bytes.",
)


def partitioner() -> tfps.partitioners.Balanced | None:
    """The partitioner that --partitioner names, or None to keep variables whole."""
    return tfps.partitioners.Balanced() if FLAGS.partitioner == "balanced" else None


def arguments() -> dict:
    """The arguments of `tfps.Trainer` that the flags give.

    Raises:
      ConfigError: --push or --pull names no codec, or one beside --network=auto, --pull names a
        codec that is not for parameters, or --consistency names no policy.
    """
    parsers = {
        "push": tfps.compression.parse,
        "pull": tfps.compression.parse,
        "consistency": tfps.consistency.parse,
    }
    texts = {name: FLAGS[name].value for name in parsers}
    if FLAGS.network == "auto":
        named = [name for name in ("push", "pull") if not FLAGS[name].using_default_value]
        if named:
            raise tfps.ConfigError(f"--network=auto chooses what --{named[0]} names; give one")
        texts["push"] = texts["pull"] = "auto"
    parsed = {}
    for name, parse in parsers.items():
        try:
            parsed[name] = parse(texts[name])
        except tfps.ConfigError as e:
            raise tfps.ConfigError(f"--{name}: {e}") from e
    if parsed["push"].tracks_receiver:
        raise tfps.ConfigError(
            f"--push={FLAGS.push} does not work for gradients, of which a ps holds no copy; it is "
            "for --pull"
        )
    if reason := parsed["pull"].not_for_weights:
        raise tfps.ConfigError(
            f"--pull={FLAGS.pull} does not work for parameters: {reason}; use float16, bfloat16 or "
            f"int8, or difference:{FLAGS.pull}"
        )
    plain = ("push_warmup", "overlap", "sparse_updates", "devices_per_worker")
    plain += ("min_workers", "task_timeout", "on_lost_ps", "spare", "ledger")
    if FLAGS.snapshots:
        parsed["snapshots"] = tfps.Snapshots(
            FLAGS.snapshots, every=FLAGS.snapshot_every, copies=FLAGS.snapshot_copies
        )
    return {**parsed, **{name: FLAGS[name].value for name in plain}}


def updates(steps: int, workers: int) -> int:
    """How often the optimizer will update, for the schedule of its learning rate.

    Args:
      steps: number of batches of all workers together.
      workers: number of workers. In rounds the workers make one update together, and a worker that
        trains on a copy of its own counts its own steps.
    """
    policy = tfps.consistency.parse(FLAGS.consistency)
    together = policy.in_rounds or policy.local_steps
    return max(1, steps // workers) if together else steps


class ShowPlacement(keras.callbacks.Callback):
    """Shows at the start which variables are on which ps, on the terminal and in TensorBoard."""

    def __init__(self, strategy: tfps.ParameterServerStrategy, log_dir: str):
        """Makes the callback.

        Args:
          strategy: the strategy of the trainer.
          log_dir: TensorBoard's folder.
        """
        super().__init__()
        self._strategy = strategy
        self._log_dir = log_dir

    def on_train_begin(self, logs: dict | None = None) -> None:
        placement = self._strategy.placement()
        print(placement, flush=True)
        writer = tf.summary.create_file_writer(self._log_dir)
        with writer.as_default(step=0):
            tf.summary.text("placement", placement.markdown())
        writer.close()


def traffic(trainer: tfps.Trainer) -> str:
    """One line about bytes in a step and staleness, from the last epoch that was trained."""
    last = {name: values[-1] for name, values in trainer.stats.items()}
    return (
        f"a worker's step sends {_size(last['push_bytes_per_step'])} and receives "
        f"{_size(last['pull_bytes_per_step'])}; staleness {last['staleness']:.1f} updates on "
        f"average, {last['staleness_max']:.0f} at most"
    )


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e6:.2f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:.1f} kB"
