"""tfps and all-reduce on the same model, data and batches, over links of a chosen bandwidth.

  python -m benchmarks.allreduce --output=runs/allreduce

Two workers (and for tfps two parameter servers and a chief), each with a link of its own, made of
Linux network namespaces; that takes root. Without root everything is on loopback. First it compares
the weights of the synchronous systems, then it measures how long a step takes.
"""

import contextlib
import os
import sys
import time
from collections.abc import Collection, Iterator

from absl import app, flags

from benchmarks import command
from benchmarks.allreduce import equality, report, slowness, systems
from benchmarks.wire import hosts, report as wire_report, turns
from benchmarks.wire.fleet import Fleet
from benchmarks.wire.systems import System

FLAGS = flags.FLAGS
command.define_flags(
    ["none", "1gbit", "100mbit"],
    none="what the kernel can",
    rounds=2,
    seconds=3.0,
    timeout=180.0,
    output="runs/allreduce",
)
flags.DEFINE_list("networks", ["dense", "embedding"], "Which of `networks.NETWORKS`.")
flags.DEFINE_string("slow_link", "1gbit", "The bandwidth with which one worker is slow.")
flags.DEFINE_float(
    "slow_cores", 0.1, "Seconds of processor time that the slow worker has in a second."
)

_SLOW_HOST = "worker1"


class _Benchmark:
    """What was found: weights, and of each network and place the results of its systems."""

    def __init__(self, fleet: Fleet, chosen: list[System]):
        self._fleet, self._chosen = fleet, chosen
        self.weights: list[dict] = []
        self.steps: dict[str, dict[str, list[dict]]] = {name: {} for name in FLAGS.networks}
        self._length = turns.Length(
            FLAGS.rounds, FLAGS.warmup, None, FLAGS.seconds, FLAGS.least_steps
        )

    def compare_weights(self) -> None:
        self.weights = equality.compare(self._fleet, self._chosen, FLAGS.output)
        print(f"\n## Weights\n\n{report.equality_table(self.weights)}\n", flush=True)

    def measure(self, place: str, leave_out: Collection[str]) -> None:
        """Measures all systems but some families, on each network."""
        chosen = [s for s in self._chosen if s.family not in leave_out]
        for network, found in self.steps.items():
            those = [systems.of_network(s, network) for s in chosen]
            found[place] = turns.run(f"{network}, {place}", self._fleet, those, self._length)

    def forget(self, place: str) -> None:
        """Drops what was measured at a place."""
        for found in self.steps.values():
            found.pop(place, None)

    def tables(self) -> Iterator[str]:
        for network, found in self.steps.items():
            yield f"## {network}\n\n{report.table(found)}\n"


def _links() -> tuple[list[str], contextlib.AbstractContextManager]:
    """The bandwidths to measure with, and the network that has them."""
    if not command.limited_links():
        return ["none"], hosts.Loopback()
    return FLAGS.bandwidth, hosts.Network()


def _run(links: list[str], network, fleet: Fleet, benchmark: _Benchmark) -> None:
    network.limit("none")
    benchmark.compare_weights()
    for link in links:
        network.limit(link)
        benchmark.measure(link, leave_out=systems.OFF_THE_NETWORK if link != "none" else ())
    slow_link = FLAGS.slow_link if FLAGS.slow_link in links else links[0]
    if reason := slowness.why_not():
        print(f"no slow worker: {reason}")
        return
    network.limit(slow_link)
    place = f"{slow_link} slow"
    pids = fleet.pids(_SLOW_HOST)
    with slowness.slowed(pids, FLAGS.slow_cores):
        # A device of one process cannot be slow by itself.
        benchmark.measure(place, leave_out=("mirrored",))
    if fleet.pids(_SLOW_HOST) != pids:
        print(f"left out: {place}, for a process was started anew, without the limit")
        benchmark.forget(place)


def main(argv) -> int:
    del argv
    try:
        links = [*FLAGS.bandwidth, FLAGS.slow_link]
        chosen = command.checked(links, systems.SYSTEMS, systems.NEEDS)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    logs = os.path.join(FLAGS.output, "logs")
    os.makedirs(logs, exist_ok=True)
    command.let_signals_interrupt()
    started = time.monotonic()
    interrupted = False
    links, network = _links()
    with (
        network,
        Fleet(network, logs, FLAGS.threads, FLAGS.timeout, systems.STARTS) as fleet,
    ):
        benchmark = _Benchmark(fleet, chosen)
        try:
            _run(links, network, fleet, benchmark)
        except KeyboardInterrupt:
            interrupted = True
            print("interrupted; what follows is what was done", file=sys.stderr)
    _finish(benchmark, time.monotonic() - started)
    return int(interrupted)


def _finish(benchmark: _Benchmark, seconds: float) -> None:
    print("\n" + "\n".join(benchmark.tables()))
    path = os.path.join(FLAGS.output, "allreduce.json")
    wire_report.write(
        path,
        arguments={name: FLAGS[name].value for name in ("rounds", "seconds", "threads")},
        took=seconds,
        weights=benchmark.weights,
        steps=benchmark.steps,
    )
    print(f"took {seconds / 60:.1f} minutes; written: {path}")


if __name__ == "__main__":
    app.run(main)
