"""tfps and others on the same model, over links of a chosen bandwidth.

  python -m benchmarks.wire --bandwidth=1gbit,100mbit,none --output=runs/wire

Two workers, two parameter servers and a chief, each with a link of its own, made of
Linux network namespaces; that takes root. A bandwidth of `none` means loopback.
"""

import os
import sys
import time

from absl import app, flags

from benchmarks import command
from benchmarks.wire import hosts, report, systems, turns
from benchmarks.wire.fleet import Fleet

FLAGS = flags.FLAGS
command.define_flags(
    ["1gbit", "100mbit", "none"],
    none="loopback",
    rounds=3,
    seconds=8.0,
    timeout=300.0,
    output="runs/wire",
)
flags.DEFINE_integer(
    "steps", None, "Steps of a worker that a turn times; by default, about --seconds' worth."
)


def _measure(links: list[str], network, chosen, folder: str, found: dict) -> None:
    """Adds link -> results to `found`. All links share the processes, which compile only once."""
    length = turns.Length(FLAGS.rounds, FLAGS.warmup, FLAGS.steps, FLAGS.seconds, FLAGS.least_steps)
    if links == ["none"]:
        print("bandwidth none: on loopback, where nobody's bytes can be told apart", flush=True)
    with network, Fleet(network, folder, FLAGS.threads, FLAGS.timeout) as fleet:
        for link in links:
            network.limit(link)
            found[link] = turns.run(link, fleet, chosen, length)
            print(f"\n{_title(link)}\n\n{report.table(found[link])}\n", flush=True)
            print(
                f"processor time of a step\n\n{report.processor_table(found[link])}\n", flush=True
            )


def _title(link: str) -> str:
    return "## loopback" if link == "none" else f"## {link} links"


def _networks() -> list[tuple[list[str], object]]:
    """The links that are measured on each network."""
    limited = command.limited_links()
    networks = [(limited, hosts.Network())] if limited else []
    if len(limited) < len(FLAGS.bandwidth):
        networks.append((["none"], hosts.Loopback()))
    return networks


def main(argv) -> int:
    del argv
    try:
        chosen = command.checked(FLAGS.bandwidth, systems.SYSTEMS, systems.NEEDS)
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    os.makedirs(FLAGS.output, exist_ok=True)
    command.let_signals_interrupt()
    found: dict[str, list[dict]] = {}
    started = time.monotonic()
    interrupted = False
    try:
        for links, network in _networks():
            logs = os.path.join(FLAGS.output, f"logs-{links[0]}")
            os.makedirs(logs, exist_ok=True)
            _measure(links, network, chosen, logs, found)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; what follows is of the links that were done", file=sys.stderr)
    if found:
        _finish(found, time.monotonic() - started)
    return int(interrupted)


def _finish(found: dict[str, list[dict]], seconds: float) -> None:
    judged = report.verdicts(found)
    if judged:
        print(f"## Bars\n\n{report.bars_table(judged)}\n")
    path = os.path.join(FLAGS.output, "wire.json")
    arguments = {name: FLAGS[name].value for name in ("rounds", "warmup", "seconds", "threads")}
    report.write(path, arguments=arguments, took=seconds, links=found, bars=judged)
    written = [path]
    if report.plot(os.path.join(FLAGS.output, "wire.png"), found):
        written.append(os.path.join(FLAGS.output, "wire.png"))
    print(f"took {seconds / 60:.1f} minutes; written: {', '.join(written)}")


if __name__ == "__main__":
    app.run(main)
