"""From 10 to 10,000 workers on paper: what `tfps.plan` predicts for three kinds of fleet.

It simulates a profile that was measured, and writes the tables and the plot of `docs/scaling.md`.

  python -m benchmarks.scaling --profile=docs/profile.json --json=runs/scaling.json
  python -m benchmarks.scaling --draw=runs/scaling.json --plot=docs/scaling.svg
"""

import json
import os
import time

from absl import app, flags

from tfps.plan import Fleet, Prediction, Profile, Setting, simulate
from tfps.planning import report

FLAGS = flags.FLAGS
flags.DEFINE_string("profile", "docs/profile.json", "Of the model.")
flags.DEFINE_list("workers", ["10", "100", "1000", "10000"], "Numbers of workers.")
flags.DEFINE_list("fleets", ["rack", "cloud", "homes"], "Which fleets.")
flags.DEFINE_string("json", "runs/scaling.json", "File for the figures; what it has is kept.")
flags.DEFINE_string("draw", None, "Only prints and draws the figures of this file.")
flags.DEFINE_string("plot", None, "File for the plot.")

# How many workers a ps serves, and no more than so many ps.
WORKERS_PER_PS, MOST_PS = 8, 256

FLEETS = {
    "rack": {"bandwidth": "10gbit", "latency": "0.1ms"},
    "cloud": {"bandwidth": "1gbit", "latency": "0.5ms", "leaving": 0.05, "slow": "0.1@2x"},
    "homes": {
        "bandwidth": "10gbit",
        "worker_bandwidth": "50mbit/10mbit",
        "latency": "0.1ms",
        "worker_latency": "80ms",
        "leaving": 0.1,
        "returning": 60.0,
        "slow": "0.2@3x",
    },
}

SETTINGS = {
    "plain": Setting(),
    "overlap": Setting(overlap=2),
    "int8": Setting("int8", "int8", 2),
    "topk": Setting("topk:0.01", "int8", 1),
    "sync": Setting("int8", "int8", 0, "sync"),
    "copies": Setting("topk:0.01", "int8", 0, "local:32,merge=each,delay=8"),
    "copies in rounds": Setting("topk:0.01", "int8", 0, "local:32,delay=8"),
}


def fleet(name: str, workers: int) -> Fleet:
    """A fleet of a kind."""
    ps = max(2, min(MOST_PS, workers // WORKERS_PER_PS))
    return Fleet(workers=workers, ps=ps, **FLEETS[name])


def row(name: str, workers: int, setting: str, found: Prediction, took: float) -> dict:
    """The figures of a prediction that the page has."""
    return {
        "fleet": name,
        "workers": workers,
        "ps": found.ps,
        "setting": setting,
        "text": str(found.setting),
        "step": found.step,
        "examples": found.examples_per_second,
        "staleness": found.staleness,
        "chief": found.chief,
        "loop": found.ps_loop,
        "links": found.links,
        "day": found.bytes_per_day,
        "limit": found.limit,
        "took": took,
    }


def table(rows: list[dict], name: str) -> str:
    """The figures of a fleet as a Markdown table."""
    lines = [
        "| workers | ps | setting | a worker's step | examples/s | staleness | chief | limit |",
        "|---:|---:|---|---:|---:|---:|---:|---|",
    ]
    for r in rows:
        if r["fleet"] == name:
            lines.append(
                f"| {r['workers']:,} | {r['ps']} | {r['setting']} | {report.duration(r['step'])} "
                f"| {r['examples']:,.0f} | {r['staleness']:,.0f} | {r['chief']:.0%} "
                f"| {r['limit']} |"
            )
    return "\n".join(lines)


def draw(rows: list[dict], path: str) -> None:
    """Draws throughput against workers, a panel for each fleet."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(r["fleet"] for r in rows))
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.8), sharey=True, layout="constrained"
    )
    for axis, name in zip(axes, names, strict=True):
        for setting in SETTINGS:
            mine = [r for r in rows if (r["fleet"], r["setting"]) == (name, setting)]
            axis.plot(
                [r["workers"] for r in mine],
                [r["examples"] for r in mine],
                marker="o",
                markersize=3,
                label=setting,
            )
        axis.set(xscale="log", yscale="log", title=name, xlabel="workers")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("examples/s of all workers")
    axes[-1].legend(fontsize=7)
    figure.savefig(path)
    pyplot.close(figure)


def main(argv: list[str]) -> int:
    del argv
    rows: list[dict] = []
    try:
        with open(FLAGS.draw or FLAGS.json) as file:
            rows = json.load(file)
    except OSError:
        if FLAGS.draw:
            raise
    if FLAGS.draw is None:
        profile = Profile.read(FLAGS.profile)
        for workers in map(int, FLAGS.workers):
            for name in FLAGS.fleets:
                for label, setting in SETTINGS.items():
                    if any(
                        (r["fleet"], r["workers"], r["setting"]) == (name, workers, label)
                        for r in rows
                    ):
                        continue
                    start = time.perf_counter()
                    found = simulate(profile, fleet(name, workers), setting)
                    took = time.perf_counter() - start
                    rows.append(row(name, workers, label, found, took))
                    print(f"{name} {workers} {label}: {took:.1f} s", flush=True)
                    os.makedirs(os.path.dirname(os.path.abspath(FLAGS.json)), exist_ok=True)
                    with open(FLAGS.json, "w") as file:
                        json.dump(rows, file, indent=1)
    for name in FLEETS:
        print(f"\n{name}\n\n{table(rows, name)}")
    if FLAGS.plot:
        draw(rows, FLAGS.plot)
    return 0


if __name__ == "__main__":
    app.run(main)
