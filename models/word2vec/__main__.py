"""Trains word vectors on text, by default on 106 articles of Wikipedia.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.word2vec
  python -m models.word2vec --data='books/*.txt' --save=books.keras
  python -m models.word2vec --save=books.keras --predict=words.txt
"""

import dataclasses
import time

import keras
import numpy as np
from absl import flags

import tfps
from models import inference, packages, program, task, texts
from models.progress import Progress
from models.word2vec import corpus, export, model as network, similarity
from models.word2vec.stretches import Stretches

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(packages)
flags.adopt_module_key_flags(inference)

DATA = (
    "Text files, a sentence or paragraph in a line: a folder, a glob or a file. Default: articles "
    "of Wikipedia, which `make data-word2vec` downloads."
)
DEFAULTS = {
    "batch_size": 32,
    "epochs": 20,
    "learning_rate": 0.025,
    "steps_per_execution": 8,
    "sparse_updates": "lazy",
    "save": "runs/word2vec/model.keras",
}

# The learning rate of a pair, times the pairs of a row in a batch whose gradients are summed up.
_LONGEST_STEP = 5.0

flags.DEFINE_integer("vector_width", 100, "Elements of a vector.", lower_bound=1)
flags.DEFINE_integer("window", 5, "Largest distance of a pair of words.", lower_bound=1)
flags.DEFINE_integer("negatives", 5, "Noise words that a pair counts for.", lower_bound=1)
flags.DEFINE_integer("min_count", 5, "Occurrences that a word needs to be learned.", lower_bound=1)
flags.DEFINE_float(
    "sample", 1e-3, "Share of the text from which on a word is thinned out.", lower_bound=0.0
)
flags.DEFINE_integer("length", 64, "Words of a stretch of text, an example.", lower_bound=2)
flags.DEFINE_integer("noise", 32, "Noise words that a stretch shares.", lower_bound=1)
flags.DEFINE_string(
    "pairs",
    None,
    "A file of word pairs that people have scored, separated by tabs, to compare with. Default: "
    "WordSim353, SimLex999 and analogies, where --data is the default too.",
)
flags.DEFINE_integer("neighbours", 5, "Words next to each word of --predict.", lower_bound=1)


def main(argv: list[str]) -> int:
    """Trains, or finds neighbours; returns the exit code."""
    return program.run(argv, train, None if FLAGS.predict is None else predict)


def train(connect: task.Connect) -> None:
    """Runs the chief: reads the text, trains, and compares with people's judgement."""
    program.check_flags()
    started = time.perf_counter()
    lines, held = corpus.read(FLAGS.data)
    questions = _questions()
    text = corpus.Corpus.of(lines, FLAGS.min_count)
    training, validation = (
        Stretches(one, FLAGS.window, FLAGS.sample, FLAGS.length, FLAGS.noise)
        for one in (text, text.encoded(held))
    )
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    batch = FLAGS.batch_size * way.batches_per_step
    steps = max(1, training.count // batch)
    updates = way.updates(steps * FLAGS.epochs)
    words = batch * FLAGS.length * steps * FLAGS.epochs / updates
    with way.scope():
        model = _compiled_model(len(text.words), updates, words)
    board = program.log_dir()
    say(
        f"{model.count_params():,} parameters on {way.describe()}, {len(text.words):,} words that "
        f"occur {len(text.ids):,} times, {len(held):,} lines held out",
        flush=True,
    )
    trainer = way.trainer(model)
    shown = Progress(
        round(len(text.ids) / steps), "words", lambda logs: f"loss {logs['val_loss']:.4f}"
    )
    program.fit(
        way,
        trainer,
        training.shuffled(batch, FLAGS.seed),
        shown,
        board,
        epochs=FLAGS.epochs,
        steps_per_epoch=steps,
        validation_data=validation.fixed(batch),
    )
    path = way.path(FLAGS.save)
    model.save(path)
    if not way.chief:
        return
    facts = {"words": text.words}
    program.write_facts(path, facts)
    vectors = _rows(model)
    export.save(export.vectors_path(path), text.words, vectors)
    export.project(board, text.words, vectors)
    held_out = {
        **_judged(similarity.Vectors(text.words, vectors), questions),
        "words_per_second": shown.per_second(),
        "seconds": time.perf_counter() - started,
    }
    program.write_facts(path, {**facts, "held_out": held_out})
    print(f"{held_out['words_per_second']:,.0f} words/s; {held_out['seconds']:.0f} s in all")
    print(f"vectors: {export.vectors_path(path)}")
    program.finish(way, trainer, board)


def predict() -> None:
    """Writes the nearest neighbours of each word in the file --predict, a word in a line."""
    model, facts = program.load(FLAGS.save)
    vectors = similarity.Vectors(facts["words"], _rows(model))
    wanted = texts.read([FLAGS.predict], "predict")[FLAGS.predict].decode("utf-8-sig", "replace")
    found = []
    for word in wanted.lower().split():
        if word not in vectors:
            raise tfps.DataError(
                f"--predict={FLAGS.predict} has the word {word!r}, which is none of the "
                f"{len(vectors.words)} of --save={FLAGS.save}; leave the word out"
            )
        found += [(word, *one) for one in vectors.next_to(word, FLAGS.neighbours)]
    columns = list(zip(*found, strict=True))
    inference.write(["word", "neighbour", "cosine"], columns)


@dataclasses.dataclass(frozen=True)
class Questions:
    """What people say of words, to compare with.

    Attributes:
      pairs: name of a file -> pairs of words with the scores that people gave them.
      analogies: content of a file, as `similarity.analogies` takes it; None for none.
    """

    pairs: dict[str, list[similarity.Pair]]
    analogies: str | None


def _questions() -> Questions:
    if FLAGS.pairs is not None:
        content = texts.read([FLAGS.pairs], "pairs")[FLAGS.pairs].decode("utf-8-sig", "replace")
        return Questions({"pairs": similarity.pairs(content, f"--pairs={FLAGS.pairs}")}, None)
    files = corpus.read_questions() if FLAGS.data is None else {}
    analogies = files.pop("analogies", None)
    return Questions({n: similarity.pairs(files[n], n) for n in files}, analogies)


def _judged(vectors: similarity.Vectors, questions: Questions) -> dict[str, float]:
    """Answers all questions, and prints a line for each file of them."""
    found = {}
    for name, pairs in questions.pairs.items():
        found[name], count = similarity.correlation(vectors, pairs)
        print(f"{name}: rank correlation {found[name]:.4f} of {count:,} pairs")
    if questions.analogies is not None:
        found["analogies"], count = similarity.analogies(vectors, questions.analogies)
        print(f"analogies: {found['analogies']:.2%} of {count:,} right")
    return found


def _rows(model: keras.Model) -> np.ndarray:
    """The word vectors of a model, float32 [vocabulary, width]."""
    (rows,) = model.get_layer(network.VECTORS).get_weights()
    return rows


def _compiled_model(vocabulary: int, updates: int, words: float) -> keras.Model:
    """A model for so many updates, each of so many words."""
    most_pairs = _LONGEST_STEP / max(FLAGS.learning_rate, 1e-9)
    model = network.build(vocabulary, FLAGS.vector_width, FLAGS.window, FLAGS.negatives, most_pairs)
    # --learning_rate is that of a pair, as in word2vec. The loss is a mean over words, of which the
    # optimizer makes a sum again. An optimizer that divides by what gradients were, such as Adagrad
    # or Adam, would turn the noise of a rare word's few first gradients into large steps.
    peak = FLAGS.learning_rate * words
    rate = keras.optimizers.schedules.PolynomialDecay(peak, max(1, updates), peak / 100)
    model.compile(
        keras.optimizers.SGD(rate),
        network.as_it_is,
        steps_per_execution=FLAGS.steps_per_execution,
    )
    return model


if __name__ == "__main__":
    program.set_defaults(DATA, **DEFAULTS)
    task.main(main)
