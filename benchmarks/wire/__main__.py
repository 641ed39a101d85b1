"""tfps and others on the same model, over links of a chosen bandwidth.

  python -m benchmarks.wire --bandwidth=1gbit,100mbit,none --output=runs/wire

Two workers, two parameter servers and a chief, each with a link of its own, made of
Linux network namespaces; that takes root. A bandwidth of `none` means loopback.
"""

import importlib.util
import os
import signal
import sys
import time

from absl import app, flags

from benchmarks.wire import fleet as fleets, hosts, report, sizes, systems

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

# The first turn compiles everything and measures how long a step takes. It has one step before the
# clock starts and one step after.
_PROBE = (1, 1)
# On a slow link one step is warm-up enough.
_LONGEST_WARMUP = 4.0  # s, but for the one step that there has to be


def _available(wanted: list[systems.System]) -> list[systems.System]:
    found = []
    missing = {}
    for system in wanted:
        module = systems.NEEDS[system.family]
        if importlib.util.find_spec(module):
            found.append(system)
        else:
            missing.setdefault(module, []).append(system.name)
    for module, names in missing.items():
        print(f"left out, for {module} is not installed: {', '.join(names)}")
    return found


class Table:
    """Runs the turns of all systems on one link."""

    def __init__(self, link: str, fleet: fleets.Fleet, chosen: list[systems.System]):
        self._link, self._fleet = link, fleet
        self._chosen = chosen
        self._turns: dict[str, list[dict]] = {s.name: [] for s in chosen}
        self._errors: dict[str, str] = {}
        self._last: dict[str, float] = {}

    def run(self, rounds: int) -> None:
        """One turn that does not count, then `rounds` that do, each through all systems.

        By taking turns, a machine's moods hit all alike.
        """
        for number in range(rounds + 1):
            for system in self._chosen:
                if system.name not in self._errors:
                    self._turn(system, number)

    def _turn(self, system: systems.System, number: int) -> None:
        probe = number == 0
        warmup, steps = (system.stride * n for n in _PROBE) if probe else self._steps(system)
        try:
            answer = self._fleet.turn(system, warmup, steps)
        except fleets.Failed as e:
            self._errors[system.name] = str(e)
            self._say(f"{system.name} failed: {e}")
            return
        step = fleets.step_time(answer)
        self._last[system.name] = step
        if not probe:
            self._turns[system.name].append({"step": step, **answer})
        place = "probe" if probe else f"round {number}"
        self._say(f"{place}: {system.name}: {1e3 * step:,.0f} ms a step ({steps} steps)")

    def _steps(self, system: systems.System) -> tuple[int, int]:
        """Of a worker, before the clock starts and after."""
        stride = system.stride
        last = self._last[system.name] * stride
        warmup = max(1, min(FLAGS.warmup, int(_LONGEST_WARMUP / last)))
        steps = FLAGS.steps or fleets.steps_for(last, FLAGS.seconds, FLAGS.least_steps)
        return warmup * stride, steps * stride

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} [{self._link}] {text}", flush=True)

    def results(self) -> list[dict]:
        return [
            report.result(s, self._turns[s.name], self._errors.get(s.name)) for s in self._chosen
        ]


def _measure(links: list[str], network, chosen, folder: str, found: dict) -> None:
    """Adds link -> results to `found`. All links share the processes, which compile only once."""
    if links == ["none"]:
        print("bandwidth none: on loopback, where nobody's bytes can be told apart", flush=True)
    with network, fleets.Fleet(network, folder, FLAGS.threads, FLAGS.timeout) as fleet:
        for link in links:
            network.limit(link)
            table = Table(link, fleet, chosen)
            table.run(FLAGS.rounds)
            found[link] = table.results()
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
    chosen = _available(systems.select(FLAGS.systems))
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
