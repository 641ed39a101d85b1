"""What codecs cost in quality: the demo's language model, the same tokens, each codec.

  python -m benchmarks.convergence --steps=1100 --only=identity --only=topk

Codecs with feedback begin after a warm-up (`push_warmup` of `tfps.Trainer`). Every
setting trains the model of `python -m models.gpt` on the same text from the same
weights with its default optimizer, in turns over the seeds, and is judged by the bits
per byte on files that training never saw. The table says how far each is from
`identity`, the mean of its own runs.
"""

import json
import statistics

from absl import app, flags

from benchmarks import gpt_runs

FLAGS = flags.FLAGS
flags.DEFINE_integer("steps", 1100, "Steps of 16 windows of 64 tokens.", lower_bound=20)
flags.DEFINE_integer("workers", 2, "Workers.", lower_bound=1)
flags.DEFINE_list("seeds", ["0"], "A run for each.")
flags.DEFINE_multi_string(
    "only",
    [],
    "Settings whose label contains this, also unusual ones; may be given more than once.",
)
flags.DEFINE_list("flags", [], "More flags of models.gpt, without the dashes: overlap=2.")
flags.DEFINE_string("output", None, "JSON file for the results.")

# (push, pull, part of the training before the codec begins, bar in % above identity or None).
SETTINGS = [
    ("identity", "identity", 0, None),
    ("float16", "identity", 0, 2),
    ("bfloat16", "identity", 0, 2),
    ("int8", "identity", 0, 2),
    ("powersgd:16", "identity", 0.15, 2),
    ("dgc:0.05,momentum=0,warmup=300", "identity", 0.15, 2),
    ("onebit", "identity", 0.15, 5),
    ("topk:0.01", "identity", 0.15, 5),
    ("identity", "float16", 0, None),
    ("identity", "bfloat16", 0, None),
    ("identity", "int8", 0, None),
]
# These run only if `--only` names them.
MORE = [
    ("powersgd:4", "identity", 0.15, None),
    ("dgc:0.01,momentum=0", "identity", 0.15, None),
    ("topk:0.01", "int8", 0.15, None),
    ("int8:stochastic", "identity", 0, None),
    ("ternary", "identity", 0, None),
    ("randomk:0.1,unbiased=false", "identity", 0.15, None),
    ("onebit", "identity", 0, None),
    ("topk:0.01", "identity", 0, None),
    ("dgc:0.01,momentum=0,warmup=200", "identity", 0, None),
    ("powersgd:4", "identity", 0, None),
    ("onebit", "difference:onebit,block=128,whole_until=330", 0.15, 1),
    ("onebit", "difference:twobit,whole_until=330", 0.15, 1),
    ("powersgd:16", "difference:onebit,block=128,whole_until=330", 0.15, 1),
]


def label(push: str, pull: str, warmup: float) -> str:
    text = push if pull == "identity" else f"{push} up, {pull} down"
    return f"{text}, warm-up {warmup:.0%}" if warmup else text


def train(push: str, pull: str, warmup: float, seed: str) -> dict:
    """Trains once; see `gpt_runs.train`."""
    return gpt_runs.train(
        "epochs=1",
        f"steps_per_epoch={FLAGS.steps}",
        f"workers={FLAGS.workers}",
        f"seed={seed}",
        f"push={push}",
        f"pull={pull}",
        f"push_warmup={round(warmup * FLAGS.steps)}",
        *FLAGS.flags,
    )


def table(results: dict) -> str:
    """The results as a Markdown table.

    Args:
      results: label -> {"bar": % above identity or None, "runs": list of what `train` returned}.
    """
    means = {
        name: statistics.mean(r["bits_per_byte"] for r in one["runs"])
        for name, one in results.items()
        if one["runs"]
    }
    base = means.get("identity")
    lines = [
        "| codec | bits per byte | to identity | bar | up a step | down a step | runs |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    for name, one in results.items():
        if not one["runs"]:
            continue
        change = 100 * (means[name] / base - 1) if base else float("nan")
        bar = "" if one["bar"] is None else f"within {one['bar']}%: "
        bar += "" if one["bar"] is None else ("met" if change <= one["bar"] else "**missed**")
        runs = ", ".join(f"{r['bits_per_byte']:.3f}" for r in one["runs"])
        last = one["runs"][-1]
        lines.append(
            f"| {name} | {means[name]:.3f} | {change:+.1f}% | {bar} | {last['up']} "
            f"| {last['down']} | {runs} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    chosen = SETTINGS
    if FLAGS.only:
        chosen = [s for s in SETTINGS + MORE if any(o in label(*s[:3]) for o in FLAGS.only)]
    results: dict = {label(*s[:3]): {"bar": s[3], "runs": []} for s in chosen}
    for seed in FLAGS.seeds:
        for push, pull, warmup, _ in chosen:
            run = train(push, pull, warmup, seed)
            results[label(push, pull, warmup)]["runs"].append(run)
            print(f"seed {seed}, {label(push, pull, warmup)}: {run}", flush=True)
            if FLAGS.output:
                with open(FLAGS.output, "w") as f:
                    json.dump(results, f, indent=1)
    print(f"\n{FLAGS.steps} steps of 1,024 tokens, {FLAGS.workers} workers\n")
    print(table(results))


if __name__ == "__main__":
    app.run(main)
