"""What snapshots cost: the same training without and with them, in turns.

  python -m benchmarks.snapshots --megabytes=100 --every=10 --seconds=30 --rounds=5

A dense model of so many megabytes is trained with Adam, so a snapshot has three times as much; with
`--table=dense` or `--table=growing` it is a table, of which each step looks up some rows. The rate
is that of the steps in the middle of `fit`; what `fit` saves at its beginning and its end is not
part of it. It also says how long the chief waited at most for the end of a step, and how much
processor time a step took, all tasks and the writing of snapshots together, which does not depend
on what else the machine does.
"""

import itertools
import shutil
import statistics
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfps
from benchmarks import measure

FLAGS = flags.FLAGS
flags.DEFINE_float("megabytes", 100.0, "Of the parameters.", lower_bound=1.0)
flags.DEFINE_float("every", 10.0, "Seconds from one snapshot to the next.", lower_bound=0.1)
flags.DEFINE_float("seconds", 30.0, "About how long a turn is timed.", lower_bound=1.0)
flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
flags.DEFINE_integer("workers", 2, "Workers.", lower_bound=1)
flags.DEFINE_integer("ps", 2, "Parameter servers.", lower_bound=1)
flags.DEFINE_integer("batch_size", 256, "Examples in a batch.", lower_bound=1)
flags.DEFINE_enum("table", None, ["dense", "growing"], "A table instead of matrices.")
flags.DEFINE_string("folder", None, "For the snapshots. Default: a temporary one.")
flags.DEFINE_string("output", None, "JSON file for the results.")


class Clock(keras.callbacks.Callback):
    """Notes when steps end, and ends training when the time is over.

    Attributes:
      ends: s at which each step ended.
    """

    def __init__(self, seconds: float):
        """Trains for so long."""
        super().__init__()
        self.ends: list[float] = []
        self._begun = self._spent = 0.0
        self._seconds = seconds

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Notes a step."""
        self.ends.append(time.perf_counter())
        self._spent = time.process_time()
        self._begun = self._begun or self._spent
        if self.ends[-1] > self.ends[0] + self._seconds:
            self.model.stop_training = True

    @property
    def rate(self) -> float:
        """Steps per minute, of all workers together."""
        return 60 * (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])

    @property
    def cpu(self) -> float:
        """Processor time of a step, in s."""
        return (self._spent - self._begun) / (len(self.ends) - 1)

    @property
    def longest(self) -> float:
        """The longest time between the ends of two steps, in s."""
        return max(b - a for a, b in itertools.pairwise(self.ends))


# Elements of a row of a table, and ids of an example.
_WIDTH, _LOOKUPS = 16, 32


def trainer(strategy: tfps.ParameterServerStrategy, snapshots: tfps.Snapshots | None):
    """(a trainer, a dataset of one batch, again and again)."""
    if FLAGS.table:
        return table(strategy, snapshots)
    own, width = matrices(strategy, snapshots)
    x = np.zeros([FLAGS.batch_size, width], np.float32)
    return own, tf.data.Dataset.from_tensors((x, x[:, :1])).repeat()


def table(strategy: tfps.ParameterServerStrategy, snapshots: tfps.Snapshots | None):
    """A trainer of a table, whose batches have random ids; see `trainer`."""
    rows = int(FLAGS.megabytes * 1e6 / 4 / _WIDTH)
    ids = keras.Input([_LOOKUPS], dtype="int64")
    layer = (
        keras.layers.Embedding(rows, _WIDTH)
        if FLAGS.table == "dense"
        else tfps.layers.HashEmbedding(_WIDTH, expected=rows)
    )
    x = keras.layers.GlobalAveragePooling1D()(layer(ids))
    model = keras.Model(ids, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.Adam(1e-4), "mse", jit_compile=False)
    own = tfps.Trainer(model, strategy, snapshots=snapshots, sparse_updates="lazy")
    rng, shape = np.random.default_rng(0), (64, FLAGS.batch_size, _LOOKUPS)
    ids = tf.data.Dataset.from_tensor_slices(rng.integers(0, rows, shape))
    return own, ids.repeat().map(lambda ids: (ids, tf.zeros([FLAGS.batch_size, 1])))


def matrices(strategy: tfps.ParameterServerStrategy, snapshots: tfps.Snapshots | None):
    """A trainer of a model of three equal matrices, and their width."""
    width = int((FLAGS.megabytes * 1e6 / 4 / 3) ** 0.5)
    layers = [keras.layers.Dense(width, "relu", use_bias=False) for _ in range(3)]
    model = keras.Sequential([keras.Input([width]), *layers, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-4), "mse", jit_compile=False)
    return tfps.Trainer(model, strategy, snapshots=snapshots), width


def main(argv: list[str]) -> None:
    """Measures, and prints the table."""
    del argv
    folder = FLAGS.folder or tempfile.mkdtemp(prefix="snapshots-")
    cluster = tfps.LocalCluster(FLAGS.workers, FLAGS.ps)
    strategy = tfps.ParameterServerStrategy(cluster, tfps.partitioners.Balanced())
    longest: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}

    def turn(name: str) -> float:
        shutil.rmtree(folder, ignore_errors=True)
        snapshots = tfps.Snapshots(folder, every=FLAGS.every) if name == "snapshots" else None
        own, data = trainer(strategy, snapshots)
        clock = Clock(FLAGS.seconds)
        own.fit(data, steps_per_epoch=10**6, verbose=0, callbacks=[clock])
        longest.setdefault(name, []).append(clock.longest)
        cpu.setdefault(name, []).append(clock.cpu)
        print(
            f"{name}: {clock.rate:.1f} steps/min, longest wait {clock.longest:.3f} s, "
            f"{clock.cpu:.3f} s of processor time a step",
            flush=True,
        )
        return clock.rate

    names = "none", "snapshots"
    rates = measure.alternate({n: lambda n=n: turn(n) for n in names}, FLAGS.rounds)
    case = f"{FLAGS.megabytes:g} MB, every {FLAGS.every:g} s"
    rows = [measure.row(case, "steps/min", rates, "none")]
    print(measure.table(rows))
    pairs = [b / a for a, b in zip(rates["none"], rates["snapshots"], strict=True)]
    print(f"median of the pairs: {statistics.median(pairs):.3f}")
    times = [b / a for a, b in zip(cpu["none"], cpu["snapshots"], strict=True)]
    print(f"median of the pairs, processor time: {statistics.median(times):.3f}")
    waits = {name: statistics.median(found) for name, found in longest.items()}
    print(", ".join(f"longest wait, {name}: {wait:.3f} s" for name, wait in waits.items()))
    if FLAGS.output:
        measure.write(FLAGS.output, rows)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    app.run(main)
