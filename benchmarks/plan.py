"""What `tfps.plan` predicts, beside what is measured: step times over limited links.

A profile is measured, then `benchmarks.wire` trains with each setting on each link, then a profile
is measured again, since a machine that others use is not equally fast all the time. Predictions are
made of both profiles, and their mean is compared.

  python -m benchmarks.plan --bandwidth=1gbit,100mbit --output=runs/plan

It takes root, as `benchmarks.wire` does. All hosts share the cores of this machine, and so do the
simulated ones. How many cores other programs leave while a turn is timed is measured, and the
simulated machine has so many.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from absl import app, flags

from benchmarks import command
from benchmarks.wire import hosts, report, turns
from benchmarks.wire.fleet import Fleet
from benchmarks.wire.sizes import WORKERS
from benchmarks.wire.systems import System

FLAGS = flags.FLAGS
command.define_flags(
    ["1gbit", "100mbit", "none"],
    none="links without a limit",
    rounds=1,
    seconds=6.0,
    timeout=300.0,
    output="runs/plan",
)
flags.DEFINE_float("profile_seconds", 25.0, "Of each of the two measurements of a profile.")
flags.DEFINE_bool("after", True, "Whether to measure the profile again at the end.")
flags.DEFINE_string("measure_profile", None, "Only measures a profile, to this file.")
flags.DEFINE_list("profiles", [], "Files of profiles to use, in place of measuring any.")
flags.DEFINE_string("measured", None, "File of an earlier run: predicts anew for what it measured.")

# Half of the latency between two namespaces, measured by ping: 0.05 ms there and back.
LATENCY = "25us"
PS = 2
# What the bar asks for: this close, and the same best three on each link.
CLOSE = 0.15


def _system(push: str, pull: str, overlap: int, consistency: str = "async") -> System:
    name = f"{push} / {pull}, {consistency}" + (f", overlap {overlap}" if overlap else "")
    settings = {"push": push, "pull": pull, "overlap": overlap, "xla": False}
    settings |= {"sparse_updates": "exact", "consistency": consistency}
    local = consistency.startswith("local:")
    return System(
        name, "local" if local else "tfps", settings, push == pull == "identity", 32 if local else 1
    )


SYSTEMS = (
    _system("identity", "identity", 0),
    _system("identity", "identity", 2),
    _system("float16", "float16", 1),
    _system("int8", "int8", 1),
    _system("topk:0.01", "int8", 1),
    _system("identity", "identity", 0, "sync"),
    _system("int8", "int8", 0, "sync"),
    _system("topk:0.01", "int8", 0, "local:32,merge=each,delay=16"),
)


def _processor_time() -> dict[int, float]:
    """Process -> seconds of processor time so far, of all processes of this machine."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue  # It has ended.
            found[int(name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _idle_time() -> float:
    """Seconds for which the cores of this machine had nothing to do so far, all together."""
    with open("/proc/stat") as file:
        fields = file.readline().split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


class _Watched:
    """A network that also notes what all processes of the machine have taken at each mark."""

    def __init__(self, network):
        self._network = network
        self.notes: list[tuple[float, float, dict[int, float]]] = []

    def traffic(self):
        self.notes.append((time.monotonic(), _idle_time(), _processor_time()))
        return self._network.traffic()

    def __getattr__(self, name):
        return getattr(self._network, name)


class _WatchedFleet(Fleet):
    """A fleet whose turns say how many cores there were for it: `cores`, and `used` of them.

    There were those that it used and those that nobody used. What other programs, the kernel's
    network and the machine below a virtual one took, there was not.
    """

    def __init__(self, network: _Watched, *arguments):
        super().__init__(network, *arguments)
        self._network = network
        self.journal: dict[str, list[dict]] = {}

    def turn(self, system: System, warmup: int, steps: int) -> dict:
        self._network.notes.clear()
        answer = super().turn(system, warmup, steps)
        (begun, idle_before, before), *_, (ended, idle_after, after) = self._network.notes
        elapsed = ended - begun
        ours = {pid for host in hosts.HOSTS for pid in self.pids(host)}
        used = sum(after[p] - before.get(p, 0.0) for p in ours if p in after) / elapsed
        idle = (idle_after - idle_before) / elapsed
        answer = {**answer, "used": used, "cores": used + idle}
        step = turns.step_time(answer)
        self.journal.setdefault(system.name, []).append({"step": step, **answer})
        return answer

    def results(self) -> list[dict]:
        """What is known if a run is interrupted; the first turn of each system does not count."""
        return [report.result(s, self.journal.get(s.name, [])[1:]) for s in SYSTEMS]


def measure_profile(path: str) -> None:
    """Measures the profile of the network of `benchmarks.wire`, in this process."""
    import tfps
    from benchmarks.wire import data, model_keras

    with tfps.LocalCluster(1, 1, processes=True) as cluster:
        strategy = tfps.ParameterServerStrategy(cluster, startup_timeout=120)
        trainer = tfps.Trainer(model_keras.keras3(), strategy)
        profile = trainer.profile(
            lambda context: data.dataset(context.worker_index),
            seconds=FLAGS.profile_seconds,
            codecs=sorted({s.settings[way] for s in _chosen() for way in ("push", "pull")}),
        )
    profile.write(path)


def _profile(path: str) -> str:
    """Measures a profile in a process with as many threads as the processes on the hosts have."""
    environ = {
        **os.environ,
        "TF_NUM_INTRAOP_THREADS": str(FLAGS.threads),
        "OMP_NUM_THREADS": str(FLAGS.threads),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    arguments = [f"--measure_profile={path}", f"--profile_seconds={FLAGS.profile_seconds}"]
    arguments += [f"--systems={name}" for name in FLAGS.systems]
    done = subprocess.run([sys.executable, "-m", "benchmarks.plan", *arguments], env=environ)
    print(f"{time.strftime('%H:%M:%S')} {path}: exit code {done.returncode}", flush=True)
    return path


def predicted(paths: list[str], link: str, system: dict, cores: float) -> list[float]:
    """Seconds of a step by each of the profiles, with what others leave of the cores."""
    from tfps.plan import Fleet as Cluster, Profile, Setting, simulate

    fleet = Cluster(
        WORKERS,
        PS,
        bandwidth=link,
        latency=LATENCY,
        shared=True,
        cores=max(0.2, cores),
    )
    names = ("push", "pull", "overlap", "consistency")
    setting = Setting(**{name: system[name] for name in names})
    return [simulate(Profile.read(path), fleet, setting, hooks=True).step for path in paths]


def compare(found: dict[str, list[dict]], paths: list[str]) -> list[dict]:
    """Measured and predicted, of everything that was measured."""
    settings = {s.name: s.settings for s in SYSTEMS}
    rows = []
    for link, results in found.items():
        for r in results:
            if "step" not in r:
                print(f"{link}: {r['system']} failed: {r['error']}")
                continue
            cores = statistics.median(t["cores"] for t in r["turns"])
            steps = predicted(paths, link, settings[r["system"]], cores)
            mean = statistics.mean(steps)
            rows.append(
                {
                    "link": link,
                    "system": r["system"],
                    "measured": r["step"],
                    "low": r["step_low"],
                    "high": r["step_high"],
                    "predicted": mean,
                    "by_profile": steps,
                    "cores": cores,
                    "error": mean / r["step"] - 1,
                }
            )
    return rows


def best(rows: list[dict], link: str, key: str) -> list[str]:
    """The three settings with the shortest steps on a link."""
    return [
        r["system"] for r in sorted((r for r in rows if r["link"] == link), key=lambda r: r[key])
    ][:3]


def table(rows: list[dict]) -> str:
    """The comparison as a Markdown table, and how much of it meets the bar."""
    lines = [
        "| link | setting | cores there were | measured, ms | predicted, ms | error |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r['link']} | {r['system']} | {r['cores']:.2f} | {1e3 * r['measured']:,.0f} "
            f"| {1e3 * r['predicted']:,.0f} | {r['error']:+.0%} |"
        )
    close = sum(abs(r["error"]) <= CLOSE for r in rows)
    lines += ["", f"within {CLOSE:.0%}: {close} of {len(rows)}"]
    for link in dict.fromkeys(r["link"] for r in rows):
        same = best(rows, link, "measured") == best(rows, link, "predicted")
        lines.append(f"{link}: the best three are {'the same' if same else 'NOT the same'}")
        if not same:
            lines.append(f"  measured {best(rows, link, 'measured')}")
            lines.append(f"  predicted {best(rows, link, 'predicted')}")
    return "\n".join(lines)


def _chosen() -> list[System]:
    return command.checked(FLAGS.bandwidth, SYSTEMS, {"tfps": "tfps", "local": "tfps"})


def _measure(found: dict[str, list[dict]], profiles: list[str]) -> None:
    chosen = _chosen()
    length = turns.Length(FLAGS.rounds, FLAGS.warmup, None, FLAGS.seconds, FLAGS.least_steps)
    links = command.limited_links() or ["none"]
    links += ["none"] if "none" in FLAGS.bandwidth and "none" not in links else []
    network = hosts.Loopback() if links == ["none"] else hosts.Network()
    watched = _Watched(network)
    with network, _WatchedFleet(watched, FLAGS.output, FLAGS.threads, FLAGS.timeout) as fleet:
        for link in links:
            network.limit(link)
            fleet.journal.clear()
            try:
                found[link] = turns.run(link, fleet, chosen, length)
            except KeyboardInterrupt:
                found[link] = fleet.results()
                raise
            finally:
                _write(found, profiles, [])


def _write(found: dict, profiles: list[str], rows: list[dict]) -> None:
    with open(os.path.join(FLAGS.output, "plan.json"), "w") as file:
        json.dump({"links": found, "profiles": profiles, "rows": rows}, file, indent=1)


def main(argv: list[str]) -> int:
    del argv
    if FLAGS.measure_profile:
        measure_profile(FLAGS.measure_profile)
        return 0
    os.makedirs(FLAGS.output, exist_ok=True)
    command.let_signals_interrupt()
    found: dict[str, list[dict]] = {}
    profiles = list(FLAGS.profiles)
    try:
        if FLAGS.measured:
            with open(FLAGS.measured) as file:
                earlier = json.load(file)
            found, profiles = earlier["links"], profiles or earlier["profiles"]
        else:
            if not FLAGS.profiles:
                profiles.append(_profile(os.path.join(FLAGS.output, "before.json")))
            _measure(found, profiles)
            if FLAGS.after and not FLAGS.profiles:
                profiles.append(_profile(os.path.join(FLAGS.output, "after.json")))
    except KeyboardInterrupt:
        print("interrupted; what follows is of what was done", file=sys.stderr)
    profiles = [path for path in profiles if os.path.exists(path)]
    if found and profiles:
        rows = compare(found, profiles)
        _write(found, profiles, rows)
        print(f"\n{table(rows)}")
    return 0


if __name__ == "__main__":
    app.run(main)
