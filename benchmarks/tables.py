"""What a table that grows costs, on one core and in training.

  python -m benchmarks.tables --keys=10000000 --width=16 --batch=10000

In this process, for one part of a table: rows a second for letting keys in, for pulls, and for
updates by Adagrad of keys that are there, with few and with all keys resident; the longest push;
bytes of memory for each key. With --train, also `Trainer.fit` beside a fixed table of the same ids
with sparse_updates="lazy" (embedded servers). With --servers, all keys on two ps processes: what
that adds to their memory and to that of the chief, and steps of the same ids with few and with all
keys resident.
"""

import contextlib
import json
import os
import pathlib
import statistics
import time
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfps
from benchmarks import measure
from tfps.embeddings.hash_table import HashTable
from tfps.embeddings.initial_rows import InitialRows
from tfps.embeddings.keys import keys_of
from tfps.embeddings.part import TablePart
from tfps.embeddings.settings import TableSettings

FLAGS = flags.FLAGS
flags.DEFINE_integer("keys", 5_000_000, "Resident keys of the part, at the end.", lower_bound=1)
flags.DEFINE_integer("few", 100_000, "Resident keys at the beginning.", lower_bound=1)
flags.DEFINE_integer("width", 16, "Elements of a row.", lower_bound=1)
flags.DEFINE_integer("batch", 10_000, "Distinct keys of a push.", lower_bound=1)
flags.DEFINE_integer("rounds", 30, "Pushes and pulls that are timed.", lower_bound=3)
flags.DEFINE_bool("part", True, "Whether to measure one part of a table in this process.")
flags.DEFINE_bool("train", True, "Whether to compare training with a fixed table.")
flags.DEFINE_bool("servers", False, "Whether to measure all keys on two ps processes.")
flags.DEFINE_string("output", None, "JSON file for the results.")

_LEARNING_RATE, _ACCUMULATOR = 0.05, 0.1


def resident(process: int | str = "self") -> int:
    """Bytes of a process that are in memory."""
    with open(f"/proc/{process}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ps_processes() -> list[int]:
    """The ids of the ps processes that this process has started."""
    children, found = set(), []
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # The thread has ended meanwhile.
            children.update((task / "children").read_text().split())
    for child in children:
        with contextlib.suppress(FileNotFoundError):
            environ = pathlib.Path(f"/proc/{child}/environ").read_text().split("\0")
            config = next((e for e in environ if e.startswith("TF_CONFIG=")), "=null")
            if (json.loads(config.partition("=")[2]) or {"task": {}})["task"].get("type") == "ps":
                found.append(int(child))
    return found


class OnePart:
    """A part with Adagrad's slot, and traced functions on it."""

    def __init__(self, keys: int, width: int):
        """Reserves room.

        Args:
          keys: how many keys are expected.
          width: of a row.
        """
        settings = TableSettings(width, InitialRows("uniform", -0.05, 0.05, 0), keys).checked()
        begin = np.full([width], _ACCUMULATOR, np.float32)
        self._table = HashTable(settings, 1, [begin])
        self.part = TablePart(self._table)
        self._now = 0
        self._push = tf.function(self._pushed, autograph=False)
        self._pull = tf.function(self._pulled, autograph=False)

    def push(self, ids: tf.Tensor, gradients: tf.Tensor) -> None:
        """One update with Adagrad."""
        self._now += 1
        self._push(self.part.handles, ids, gradients, tf.constant(self._now, tf.int64))

    def pull(self, ids: tf.Tensor) -> tf.Tensor:
        """Rows of ids."""
        return self._pull(self.part.handles, ids, tf.constant(self._now, tf.int64))

    def _pulled(self, handles, ids, now):
        return self._table.read(handles, keys_of(ids), now)

    def _pushed(self, handles, ids, gradients, now):
        where, taken = self._table.insert(handles, keys_of(ids), now)
        gradients = tf.gather(gradients, taken)
        row = self._table.gather(handles, where)
        slot = self._table.gather(handles, where, 0) + gradients**2
        row -= _LEARNING_RATE * gradients / tf.sqrt(slot)
        done = self._table.update(handles, where, row, now)
        done += self._table.update(handles, where, slot, now, 0)
        with tf.control_dependencies(done):
            self._table.commit(handles, where, now)


def seconds(call, batches: Iterator[tf.Tensor]) -> list[float]:
    """How long each call takes."""
    found = []
    for batch in batches:
        start = time.perf_counter()
        call(batch)
        found.append(time.perf_counter() - start)
    return found


def one_part() -> list[dict]:
    """Rows a second, and bytes for each key, of one part."""
    keys, few, batch = FLAGS.keys, FLAGS.few, FLAGS.batch
    rng = np.random.default_rng(0)
    gradients = tf.constant(rng.normal(size=(batch, FLAGS.width)).astype(np.float32))
    before = resident()
    part = OnePart(keys, FLAGS.width)

    def fill(begin, end):
        ids = (tf.range(b, b + batch, dtype=tf.int64) for b in range(begin, end, batch))
        return seconds(lambda one: part.push(one, gradients), ids)

    def known(count):
        for _ in range(FLAGS.rounds):
            yield tf.constant(rng.choice(count, batch, replace=False))

    rows = []

    def note(case, times):
        rates = {"table": [batch / t for t in times]}
        rows.append(measure.row(case, "rows/s", rates, "table"))
        print(
            f"{case}: {statistics.median(rates['table']):,.0f} rows/s, longest {max(times):.3f} s"
        )

    note("let in, the first", fill(0, few)[1:])
    for name, count in (("few", few), ("all", keys)):
        if name == "all":
            note("let in, the rest", fill(few, keys))
        list(map(part.pull, known(count)))  # Memory that is touched for the first time is slow.
        note(
            f"pull, {name} keys resident", seconds(lambda one: part.pull(one).numpy(), known(count))
        )
        note(
            f"find and update, {name} keys resident",
            seconds(lambda one: part.push(one, gradients), known(count)),
        )
    each = (resident() - before) / keys
    bound = 4 * FLAGS.width * 2 + 40
    print(f"{each:.0f} bytes for each key, {each / bound:.2f} of 4 x width x (1 + slots) + 40")
    return rows


def model(layer: keras.layers.Layer) -> keras.Model:
    """Looks up a row for each of eight ids."""
    ids = keras.Input([8], dtype="int64")
    made = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(layer(ids))))
    made.compile(keras.optimizers.Adagrad(0.05), "mse", steps_per_execution=10)
    return made


def training() -> list[dict]:
    """Steps a second of a table that grows, beside a fixed one."""
    count, steps = 1_000_000, 100
    rng = np.random.default_rng(0)
    ids = rng.integers(0, count, (steps * FLAGS.batch // 8, 8))
    labels = np.sin(ids[:, :1]).astype(np.float32)
    strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=1, ps=2))
    layers = {
        "fixed": keras.layers.Embedding(count, FLAGS.width),
        "grows": tfps.layers.HashEmbedding(FLAGS.width, expected=count),
    }
    trainers = {
        name: tfps.Trainer(model(layer), strategy, sparse_updates="lazy")
        for name, layer in layers.items()
    }

    def run(name):
        fit = trainers[name].fit
        batch = max(1, FLAGS.batch // 8)
        return measure.timed(lambda: fit(ids, labels, batch_size=batch, verbose=0), steps)

    runs = {name: lambda name=name: run(name) for name in trainers}
    for warm in runs.values():
        warm()
    rates = measure.alternate(runs, 5)
    return [measure.row("fit, one worker", "steps/s", rates, "fixed")]


def on_servers() -> list[dict]:
    """Steps a second with few and with all keys on two ps processes, and what memory they take."""
    keys, few, batch = FLAGS.keys, FLAGS.few, max(1, FLAGS.batch // 8)
    with tfps.LocalCluster(workers=1, ps=2, processes=True) as cluster:
        strategy = tfps.ParameterServerStrategy(cluster)
        trainers = {
            name: tfps.Trainer(model(tfps.layers.HashEmbedding(FLAGS.width, count)), strategy)
            for name, count in (("few keys", few), ("all keys", keys))
        }

        def fit(name, ids):
            labels = np.zeros([len(ids), 1], np.float32)
            trainers[name].fit(ids, labels, batch_size=batch, shuffle=False, verbose=0)

        def memory():
            servers = sum(resident(p) for p in ps_processes())
            return np.array([servers, resident()])

        def ids(begin, end):
            return np.arange(begin, end // 8 * 8).reshape(-1, 8)

        fit("few keys", ids(0, few))
        fit("all keys", ids(0, few))
        before = memory()
        start = time.perf_counter()
        fit("all keys", ids(few, keys))
        rate = (keys - few) / (time.perf_counter() - start)
        servers, chief = memory()
        bound = keys * (4 * FLAGS.width * 2 + 40)
        print(
            f"{rate:,.0f} new keys/s; ps have {servers / 1e9:.2f} GB, {servers / bound:.2f} of "
            f"keys x (4 x width x (1 + slots) + 40), of which {(servers - before[0]) / 1e9:.2f} GB "
            f"({(servers - before[0]) / bound:.2f}) came with the keys; chief {chief / 1e9:.2f} GB"
        )
        same = np.random.default_rng(0).integers(0, few // 8 * 8, (90 * batch, 8))

        def rate(name):
            """Steps a second, without what a fit takes to begin and to end."""
            taken = []
            for steps in (10, 90):
                start = time.perf_counter()
                fit(name, same[: steps * batch])
                taken.append(time.perf_counter() - start)
            return 80 / (taken[1] - taken[0])

        runs = {name: lambda name=name: rate(name) for name in trainers}
        for warm in runs.values():
            warm()
        return [measure.row("fit, two ps", "steps/s", measure.alternate(runs, 5), "few keys")]


def main(argv: list[str]) -> None:
    """Measures, and prints."""
    del argv
    rows = one_part() if FLAGS.part else []
    if FLAGS.train:
        rows += training()
    if FLAGS.servers:
        rows += on_servers()
    print(measure.table(rows))
    if FLAGS.output:
        measure.write(FLAGS.output, rows)


if __name__ == "__main__":
    app.run(main)
