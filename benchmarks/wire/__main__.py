"""tfps and others on the same model, over links of a chosen bandwidth.

  python -m benchmarks.wire --bandwidth=1gbit,100mbit,none --output=runs/wire

Two workers, two parameter servers and a chief, each with a link of its own, made of
Linux network namespaces; that takes root. A bandwidth of `none` means loopback.
"""

import os
import signal
import sys
import time

from absl import app, flags

from benchmarks.wire import fleet as fleets, hosts, report, sizes, systems, turns

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "bandwidth",
    ["1gbit", "100mbit", "none"],
    "Of each host's link, both ways, as tc writes it; `none` is loopback.",
)
flags.DEFINE_multi_string(
    "systems", [], "Only those whose name or family contains this; may be given more than once."
)
flags.DEFINE_integer("rounds", 3, "Turns of each system on each link.", lower_bound=1)
flags.DEFINE_integer(
    "warmup", 2, "Steps of a worker before a turn is timed, at most.", lower_bound=1
)
flags.DEFINE_integer(
    "steps", None, "Steps of a worker that a turn times; by default, about --seconds' worth."
)
flags.DEFINE_float("seconds", 8.0, "That a turn is timed for, if --steps is not given.")
flags.DEFINE_integer("least_steps", 3, "That a turn times, if --steps is not given.", lower_bound=1)
flags.DEFINE_integer(
    "threads",
    max(1, (os.cpu_count() or 1) // sizes.WORKERS),
    "Compute threads of each process; the default shares this machine's cores among the workers.",
    lower_bound=1,
)
flags.DEFINE_float("timeout", 300.0, "Seconds that one start or turn may take.")
flags.DEFINE_string("output", "runs/wire", "Folder for logs, JSON and plot.")


def _measure(links: list[str], network, chosen, folder: str, found: dict) -> None:
    """Adds link -> results to `found`. All links share the processes, which compile only once."""
    length = turns.Length(FLAGS.rounds, FLAGS.warmup, FLAGS.steps, FLAGS.seconds, FLAGS.least_steps)
    if links == ["none"]:
        print("bandwidth none: on loopback, where nobody's bytes can be told apart", flush=True)
    with network, fleets.Fleet(network, folder, FLAGS.threads, FLAGS.timeout) as fleet:
        for link in links:
            network.limit(link)
            found[link] = turns.run(link, fleet, chosen, length)
            print(f"\n{_title(link)}\n\n{report.table(found[link])}\n", flush=True)


def _title(link: str) -> str:
    return "## loopback" if link == "none" else f"## {link} links"


def _networks(links: list[str]) -> list[tuple[list[str], object]]:
    """The links that are measured on each network."""
    limited = [link for link in links if link != "none"]
    loopback = len(limited) < len(links)
    why_not = hosts.why_not() if limited else None
    if why_not:
        print(f"no network namespaces: {why_not}; loopback takes the place of {', '.join(limited)}")
        limited, loopback = [], True
    networks = [(limited, hosts.Network())] if limited else []
    if loopback:
        networks.append((["none"], hosts.Loopback()))
    return networks


def main(argv) -> int:
    del argv
    for link in FLAGS.bandwidth:
        if link != "none":
            try:
                hosts.bits_per_second(link)
            except ValueError as e:
                print(f"error: {e}", file=sys.stderr)
                return 1
    chosen = systems.available(systems.select(FLAGS.systems))
    if not chosen:
        known = ", ".join(s.name for s in systems.SYSTEMS)
        print(f"error: --systems={FLAGS.systems} selects none of: {known}", file=sys.stderr)
        return 1
    os.makedirs(FLAGS.output, exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    found: dict[str, list[dict]] = {}
    started = time.monotonic()
    interrupted = False
    try:
        for links, network in _networks(FLAGS.bandwidth):
            logs = os.path.join(FLAGS.output, f"logs-{links[0]}")
            os.makedirs(logs, exist_ok=True)
            _measure(links, network, chosen, logs, found)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; what follows is of the links that were done", file=sys.stderr)
    if found:
        _finish(found, time.monotonic() - started)
    return int(interrupted)


def _interrupt(number, frame) -> None:
    """Ends the run on the first signal, and ignores later signals during the clean-up."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


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
