"""Trains word vectors by `models.word2vec` and by Gensim, on the same text with the same settings.

  .venv/bin/pip install -c constraints.txt -e '.[compare]' && make data-word2vec
  python -m benchmarks.word2vec
  python -m benchmarks.word2vec --seeds=1 -- --push=int8 --pull=bfloat16

Both have the same lines, vocabulary, window, noise words, thinning out, epochs and width, and
Gensim has a thread for each core. Gensim reads the vectors of both, and compares them with people's
judgement of word pairs. Words per second count every word of the vocabulary in the text, thinned
out or not, in the time of `train` of Gensim, and in the median epoch of `models.word2vec`. Flags
after -- are for `models.word2vec`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from absl import app, flags
from gensim.models import KeyedVectors, Word2Vec

from models import packages, program
from models.word2vec import __main__ as binary, corpus

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(packages)

flags.DEFINE_integer("seeds", 3, "Runs of each, with seeds from 0 on.", lower_bound=1)

# The vectors, and words per second.
Run = tuple[KeyedVectors, float]


def gensim(lines: list[corpus.Line], seed: int) -> Run:
    """Trains skip-gram with Gensim, by the settings of `models.word2vec`."""
    model = Word2Vec(
        sg=1,
        vector_size=FLAGS.vector_width,
        window=FLAGS.window,
        negative=FLAGS.negatives,
        min_count=FLAGS.min_count,
        sample=FLAGS.sample,
        workers=os.cpu_count(),
        seed=seed,
    )
    model.build_vocab(lines)
    started = time.perf_counter()
    model.train(lines, total_examples=len(lines), epochs=FLAGS.epochs)
    seconds = time.perf_counter() - started
    words = sum(model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key)
    return model.wv, words * FLAGS.epochs / seconds


def ours(args: list[str], seed: int) -> Run:
    """Trains `models.word2vec` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "models.word2vec", f"--packages={FLAGS.packages}"]
        command += [f"--save={folder}/m.keras", f"--log_dir={folder}/board", f"--seed={seed}"]
        done = subprocess.run([*command, *args], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        with open(f"{folder}/m.json", encoding="utf-8") as f:
            facts = json.load(f)["held_out"]
        return KeyedVectors.load_word2vec_format(f"{folder}/m.vec"), facts["words_per_second"]


def judged(vectors: KeyedVectors, name: str) -> float:
    """The rank correlation with people's judgement, as Gensim computes it."""
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as f:
        f.write(corpus.read_questions()[name])
        f.flush()
        return float(vectors.evaluate_word_pairs(f.name)[1].statistic)


def row(title: str, run: Callable[[int], Run]) -> str:
    """A line of the table: means over the seeds, and the median of the speed."""
    runs = [run(seed) for seed in range(FLAGS.seeds)]
    cells = [title]
    for name in ("wordsim353", "simlex999"):
        found = [judged(vectors, name) for vectors, _ in runs]
        cells.append(f"{statistics.mean(found):.4f} ({min(found):.4f} to {max(found):.4f})")
    cells.append(f"{statistics.median(speed for _, speed in runs):,.0f}")
    return f"| {' | '.join(cells)} |"


def main(argv: list[str]) -> None:
    """Prints the table."""
    lines, _ = corpus.read(None)
    print(f"| {FLAGS.seeds} seeds | WordSim353 | SimLex999 | words/s |\n|---|---:|---:|---:|")
    print(row("Gensim", lambda seed: gensim(lines, seed)), flush=True)
    print(row("models.word2vec", lambda seed: ours(argv[1:], seed)), flush=True)


if __name__ == "__main__":
    program.set_defaults(binary.DATA, **binary.DEFAULTS)
    app.run(main)
