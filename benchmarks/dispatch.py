"""What a scheduled function costs: `tfps.ClusterCoordinator` beside TensorFlow's.

They run on one embedded cluster, in turns; tfps also with two functions in flight on
a worker. The functions do next to nothing, so what is measured is the coordinator, and
the remote call that none can do without; for the empty function on one worker, that call by
itself is measured too. Then the memory of functions that wait, each
coordinator in a process of its own.

  python -m benchmarks.dispatch
"""

import functools
import gc
import json
import pathlib
import threading
import time
import tracemalloc

import numpy as np
import tensorflow as tf
from absl import app, flags

import models  # noqa: F401  Imports TensorFlow without its notes.
import tfps
from benchmarks import measure

FLAGS = flags.FLAGS
flags.DEFINE_list("workers", ["1", "2", "4"], "Numbers of workers.")
flags.DEFINE_integer("rounds", 7, "Turns of each coordinator.", lower_bound=1)
flags.DEFINE_integer("calls", 1000, "Functions scheduled in a turn.", lower_bound=8)
flags.DEFINE_list("cases", [], "Only these; by default all.")
flags.DEFINE_integer("queued", 10_000, "Functions that wait while memory is measured.")
flags.DEFINE_string("json", "dispatch.json", "File for the results.")
flags.DEFINE_enum("memory_of", None, ["tfps", "stock"], "Only that, as JSON.")

BAR = 0.35  # of stock's time
IN_FLIGHT = "tfps, in_flight=2"
ALONE = "the call alone"


def coordinators(cluster) -> dict:
    """Makes the coordinators, each on its own strategy. The strategy of tfps connects first."""
    ours = [tfps.ParameterServerStrategy(cluster) for _ in range(2)]
    stock = tf.distribute.ParameterServerStrategy(cluster.resolver())
    return {
        "tfps": tfps.ClusterCoordinator(ours[0]),
        IN_FLIGHT: tfps.ClusterCoordinator(ours[1], in_flight=2),
        "stock": tf.distribute.coordinator.ClusterCoordinator(stock),
    }


def empty_function():
    @tf.function
    def empty():
        pass

    return empty


def scalar_function():
    @tf.function
    def scalar():
        return tf.random.uniform([])

    return scalar


def keep(coordinator, function, calls):
    """Schedules functions, and keeps the values that `schedule` returns."""
    values = [coordinator.schedule(function) for _ in range(calls)]
    coordinator.join()
    return values


def drop(coordinator, function, calls):
    """Schedules functions, and ignores the values that `schedule` returns, as training loops do."""
    for _ in range(calls):
        coordinator.schedule(function)
    coordinator.join()


def fetch(coordinator, function, calls):
    """Schedules functions, and fetches every result."""
    coordinator.fetch(keep(coordinator, function, calls))


CASES = {
    "empty": (empty_function, keep),
    "scalar": (scalar_function, keep),
    "scalar ignored": (scalar_function, drop),
    "scalar fetched": (scalar_function, fetch),
}


def alone(_, function, calls):
    """Calls the function on the worker by TensorFlow alone, without a coordinator."""
    graph = function.get_concrete_function()
    with tf.device("/job:worker/task:0"):
        for _ in range(calls):
            graph()


def turn(use, coordinator, function, calls) -> float:
    """Microseconds per call. The first quarter is not measured: earlier work may still run then."""
    gc.collect()
    time.sleep(0.5)
    use(coordinator, function, calls // 4)
    start = time.perf_counter()
    kept = use(coordinator, function, calls)
    took = time.perf_counter() - start
    del kept
    return took / calls * 1e6


def compare(workers: int) -> list[dict]:
    made = coordinators(tfps.LocalCluster(workers, 1))
    rows = []
    for case in FLAGS.cases or CASES:
        make, use = CASES[case]
        runs = {}
        for name, coordinator in made.items():
            function = make()  # One for each: it keeps what a coordinator knows of it.
            runs[name] = functools.partial(turn, use, coordinator, function, FLAGS.calls)
        if case == "empty" and workers == 1:
            runs[ALONE] = functools.partial(turn, alone, None, make(), FLAGS.calls)
        for run in runs.values():
            run()
        rates = measure.alternate(runs, FLAGS.rounds)
        rows.append(measure.row(f"{case}, {workers} worker(s)", "µs", rates, "stock"))
        print(measure.table(rows[-1:]).split("\n", 2)[2], flush=True)
    return rows


def resident() -> int:
    """The resident memory of this process, in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def memory(name: str) -> dict:
    """Measures the bytes per function that waits in the queue behind a function that blocks."""
    coordinator = coordinators(tfps.LocalCluster(1, 1))[name]
    entered, release = threading.Event(), threading.Event()

    def wait():
        entered.set()
        return np.bool_(release.wait(600))

    @tf.function
    def blocked():
        return tf.ensure_shape(tf.numpy_function(wait, [], tf.bool), [])

    function, found = scalar_function(), {}
    keep(coordinator, function, 100)
    first = coordinator.schedule(blocked)
    entered.wait(60)
    for what in ("traced", "resident"):
        gc.collect()
        if what == "traced":
            tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0] if what == "traced" else resident()
        values = [coordinator.schedule(function) for _ in range(FLAGS.queued)]
        after = tracemalloc.get_traced_memory()[0] if what == "traced" else resident()
        found[what] = (after - before) / len(values)
        if what == "traced":
            tracemalloc.stop()
            held = values  # Freed memory would be used again by the next ones.
    release.set()
    coordinator.join()
    del first, held
    return found


def memory_in_a_process(name: str) -> dict:
    return measure.in_a_process(
        "benchmarks.dispatch", f"--memory_of={name}", f"--queued={FLAGS.queued}"
    )


def main(argv: list[str]) -> int:
    del argv
    tf.get_logger().setLevel("ERROR")
    if FLAGS.memory_of:
        print(json.dumps(memory(FLAGS.memory_of)))
        return 0
    rows = [row for workers in FLAGS.workers for row in compare(int(workers))]
    print("\n" + measure.table(rows))
    for row in rows:
        for name in ("tfps", IN_FLIGHT):
            ratio = row["ratio"][name]
            verdict = "met" if ratio <= BAR else "MISSED"
            print(f"{row['case']}, {name}: {ratio:.2f} of stock's time, bar {BAR}: {verdict}")
    rows += [{"case": f"memory, {n}", "bytes": memory_in_a_process(n)} for n in ("tfps", "stock")]
    for row in rows[-2:]:
        print(f"{row['case']}: {row['bytes']} bytes a function that waits")
    measure.write(FLAGS.json, rows)
    return 0


if __name__ == "__main__":
    app.run(main)
