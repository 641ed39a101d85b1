"""How long the codecs take on one core, with their error feedback.

Every codec runs in a process of its own on one CPU, in the way training calls
it: one function encodes the buckets of a model one after another, and the state
goes in and out. Codecs that can be compiled are compiled. CPU is the processor
time of an encode: where it is far below the elapsed time, something else ran on
that CPU meanwhile.

  python -m benchmarks.codecs --mb=28
"""

import math
import os
import statistics
import subprocess
import sys
import time

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("mb", 28, "Gradients a step, in MB of float32.", lower_bound=1)
flags.DEFINE_integer("repeats", 30, "Measured steps of each codec.", lower_bound=3)
flags.DEFINE_string("codecs", "", "Which to measure, as `parse` reads them, separated by ';'.")
flags.DEFINE_string("only", "", "Measures one codec in this process.")

# The targets: milliseconds in which a codec should encode 28 MB.
TARGETS = {
    "none": None,
    "float16": None,
    "bfloat16": None,
    "int8": 15,
    "int8:stochastic": None,
    "ternary": None,
    "onebit": 15,
    "topk:0.01": 30,
    "randomk:0.01": None,
    "randomk:0.01,unbiased=False": None,
    "dgc:0.01": 30,
    "powersgd:4": 30,
}

# About the most elements of a bucket. As in real buckets, it is no round number.
BUCKET = (4 << 20) // 4 - 3
MATRIX = (512, 2048)


def measure(name: str) -> str:
    """Measures one codec; returns a row of the table."""
    import tensorflow as tf

    from tfps import compression

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    codec = compression.with_feedback(compression.parse(name))
    elements = FLAGS.mb * 1_000_000 // 4
    shape = MATRIX if codec.matrices else (BUCKET,)
    shapes = [shape] * max(1, round(elements / math.prod(shape)))
    gradients = [
        [tf.random.stateless_normal(s, [step, i]) * 1e-3 for i, s in enumerate(shapes)]
        for step in range(3)
    ]

    @tf.function(jit_compile=codec.jit, autograph=False)
    def encode(gradients, states, step):
        both = [
            codec.encode(g, s, tf.stack([step, i]))
            for i, (g, s) in enumerate(zip(gradients, states, strict=True))
        ]
        return [payload for payload, _ in both], [state for _, state in both]

    @tf.function(jit_compile=True, autograph=False)
    def decode(payloads):
        return [codec.decode(p, s, tf.float32) for p, s in zip(payloads, shapes, strict=True)]

    states = [codec.initial_state(s) for s in shapes]
    encoding, busy, decoding = [], [], []
    for step in range(FLAGS.repeats + 5):
        number = tf.constant(step)
        begun, start = time.process_time(), time.perf_counter()
        payloads, states = encode(gradients[step % 3], states, number)
        middle, ended = time.perf_counter(), time.process_time()
        decoded = decode(payloads)
        end = time.perf_counter()
        del decoded
        if step >= 5:  # Traced, compiled, and past the first states, which are zeros.
            encoding.append((middle - start) * 1e3)
            busy.append((ended - begun) * 1e3)
            decoding.append((end - middle) * 1e3)
    total = sum(math.prod(s) for s in shapes) * 4
    sent = sum(int(tf.size(t)) * t.dtype.size for p in payloads for t in p)
    median = statistics.median(encoding)
    target = TARGETS.get(name)
    verdict = "" if target is None else f"{target} ms: {'met' if median <= target else 'missed'}"
    return (
        f"| {name} | {median:.1f} | {min(encoding):.1f} to {max(encoding):.1f} "
        f"| {statistics.median(busy):.1f} | {statistics.median(decoding):.1f} "
        f"| {sent:,} | {total / sent:.1f} | {verdict} |"
    )


def main(argv: list[str]) -> None:
    del argv
    if FLAGS.only:
        print(measure(FLAGS.only), flush=True)
        return
    print(f"{FLAGS.mb} MB of float32 gradients, one core, median of {FLAGS.repeats} steps\n")
    print("| codec | encode ms | spread | CPU ms | decode ms | payload bytes | ratio | target |")
    print("|---|---:|---:|---:|---:|---:|---:|---|", flush=True)
    for name in FLAGS.codecs.split(";") if FLAGS.codecs else TARGETS:
        command = [sys.executable, "-m", "benchmarks.codecs", f"--only={name}"]
        command += [f"--mb={FLAGS.mb}", f"--repeats={FLAGS.repeats}"]
        cpu = max(os.sched_getaffinity(0))
        subprocess.run(
            command,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            preexec_fn=lambda cpu=cpu: os.sched_setaffinity(0, {cpu}),
            stderr=subprocess.DEVNULL,
            check=True,
        )


if __name__ == "__main__":
    app.run(main)
