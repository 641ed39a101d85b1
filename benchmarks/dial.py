"""The dial from asynchronous to synchronous: what each setting costs in quality and in time.

  python -m benchmarks.dial --steps=2200 --output=runs/dial

Every setting trains the model of `python -m models.gpt` on the same number of tokens
of the same text, from the same weights, and is judged on files that training never
saw. Writes JSON, and a plot of the validation loss against the time spent training.
"""

import json
import os

from absl import app, flags

from benchmarks import gpt_runs

FLAGS = flags.FLAGS
flags.DEFINE_integer("steps", 2200, "Steps of 16 windows of 64 tokens, in all.", lower_bound=80)
flags.DEFINE_integer("epochs", 4, "Validations.", lower_bound=1)
flags.DEFINE_integer("workers", 2, "Workers.", lower_bound=1)
flags.DEFINE_multi_string(
    "only",
    [],
    "Only this setting, or all that contain it if there is none of that name; may be given more "
    "than once.",
)
flags.DEFINE_list("flags", [], "More flags of models.gpt, without the dashes: push=int8.")
flags.DEFINE_string("output", "runs/dial", "Folder for JSON and plot.")

SETTINGS = [
    "sync",
    "async",
    "local:16,outer=sgd:1.0:0.4",
    "local:16,outer=sgd:1.0:0.4,delay=4",
    "local:16,merge=each,outer=sgd:0.7",
    "local:16,merge=each,outer=sgd:0.7,delay=4",
    "bounded:0",
    "bounded:2",
    "local:16",
    "local:16,outer=average",
    "local:16,merge=each,outer=average",
    "async:staleness_scaling=true",
]
# The bar of LocalSteps: with the best outer optimizer, its loss exceeds that of Sync by at most
# this many percent.
_BAR = ("local:16", 3.0)


def train(setting: str) -> dict:
    """Trains once; see `gpt_runs.train`. Adds the `seconds` of training, and tokens per second."""
    steps = FLAGS.steps // FLAGS.epochs
    found = gpt_runs.train(
        f"epochs={FLAGS.epochs}",
        f"steps_per_epoch={steps}",
        f"workers={FLAGS.workers}",
        f"consistency={setting}",
        *FLAGS.flags,
    )
    seconds = 0.0
    curve = []
    for rate, loss in found["curve"]:
        seconds += steps / rate
        curve.append([seconds, loss])
    # The first epoch compiles.
    rates = [rate for rate, _ in found["curve"][1:]] or [found["curve"][0][0]]
    tokens = gpt_runs.TOKENS_PER_STEP * sum(rates) / len(rates)
    return {**found, "curve": curve, "training_seconds": seconds, "tokens_per_second": tokens}


def table(results: dict[str, dict]) -> str:
    """The results as a Markdown table."""
    base = results.get("sync", {}).get("bits_per_byte")
    lines = [
        "| consistency | bits per byte | to sync | tokens/s | staleness | up a step | down |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in results.items():
        change = f"{100 * (one['bits_per_byte'] / base - 1):+.1f}%" if base else ""
        lines.append(
            f"| `{name}` | {one['bits_per_byte']:.3f} | {change} | "
            f"{one['tokens_per_second']:,.0f} | {one['staleness']:.1f} | {one['up']} | "
            f"{one['down']} |"
        )
    prefix, bar = _BAR
    held = {n: one["bits_per_byte"] for n, one in results.items() if n.startswith(prefix)}
    if base and held:
        name = min(held, key=held.get)
        change = 100 * (held[name] / base - 1)
        verdict = "met" if change <= bar else "**missed**"
        lines += [
            "",
            f"`{prefix}` within {bar:g}% of `sync`: {verdict}, by {change:+.1f}% with `{name}`.",
        ]
    return "\n".join(lines)


def plot(path: str, results: dict[str, dict]) -> bool:
    """Plots validation loss against time; returns False if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, one in results.items():
        # There are more settings than colours.
        style = "--" if name.startswith("local") else "-"
        axes.plot(*zip(*one["curve"], strict=True), style, marker="o", markersize=3, label=name)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("validation loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    names = set(SETTINGS)
    chosen = [
        s
        for s in SETTINGS
        if not FLAGS.only or any(o == s if o in names else o in s for o in FLAGS.only)
    ]
    os.makedirs(FLAGS.output, exist_ok=True)
    results: dict[str, dict] = {}
    for setting in chosen:
        results[setting] = train(setting)
        print(f"{setting}: {results[setting]}", flush=True)
        with open(os.path.join(FLAGS.output, "dial.json"), "w") as f:
            json.dump(results, f, indent=1)
        plot(os.path.join(FLAGS.output, "dial.png"), results)
    print(f"\n{FLAGS.steps} steps of 1,024 tokens, {FLAGS.workers} workers\n\n{table(results)}")


if __name__ == "__main__":
    app.run(main)
