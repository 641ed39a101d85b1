"""Trains a tagger of named entities, or tags those in a file.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.ner
  python -m models.ner --init=runs/bert/model.keras
  python -m models.ner --data=train.conll --save=names.keras
  python -m models.ner --save=names.keras --predict=new.txt --out=new.conll
"""

import os
import time
import zlib
from collections.abc import Sequence

import keras
import numpy as np
from absl import flags

import tfps
from models import (
    feeding,
    inference,
    packages,
    program,
    tables,
    task,
    text_flags,
    transformer,
    word_pieces,
)
from models.ner import examples, model as network, pages, pretrained, sentences, spans
from models.ner.sentences import OUTSIDE, Sentence
from models.progress import Progress

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(packages)
flags.adopt_module_key_flags(inference)
for name in text_flags.WITHOUT_SIZE:
    flags.declare_key_flag(name)

DATA = (
    "A file of CoNLL's format to train on: a word and its tag on each line. Default: PostgreSQL's "
    "manual, which `make data-ner` downloads."
)
DEFAULTS = {
    "batch_size": 16,
    "epochs": 2,
    "learning_rate": 2e-4,
    "steps_per_execution": 4,
    "dropout": 0.1,
    "warmup_steps": 40,
    "sparse_updates": "lazy",
    "save": "runs/ner/model.keras",
}

flags.DEFINE_string(
    "init",
    "minilm",
    "What the encoder begins as: minilm, which others have trained; the file of a model of "
    "models.bert; or random, with the size and the word pieces of minilm.",
)
flags.DEFINE_integer("sentences", 1500, "Most sentences to train on.", lower_bound=1)
flags.DEFINE_integer(
    "validation_sentences", 600, "Most sentences that are held out.", lower_bound=1
)

_HELD_OUT = 5  # One page in so many is held out.


def main(argv: list[str]) -> int:
    """Trains, or tags; returns the exit code."""
    return program.run(argv, train, None if FLAGS.predict is None else predict)


def train(connect: task.Connect) -> None:
    """Runs the chief: reads sentences, trains, and tells how many entities are found."""
    program.check_flags()
    started = time.perf_counter()
    training, held = _sentences()
    names = [OUTSIDE, *sorted({tag for s in training for tag in s.tags} - {OUTSIDE})]
    size, values, pieces = _start()
    known, unseen = (examples.encode(s, pieces, names, FLAGS.context) for s in (training, held))
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    batch = FLAGS.batch_size * way.batches_per_step
    data = feeding.shuffled(known.tokens, known.tags, batch, FLAGS.seed)
    with way.scope():
        updates = way.updates(FLAGS.epochs * (len(known.tags) // batch))
        model = _compiled_model(size, values, len(names), updates)
    board = program.log_dir()
    say(
        f"{model.count_params():,} parameters on {way.describe()}, {len(training):,} sentences to "
        f"train on, {len(held):,} held out, {len(names)} tags",
        flush=True,
    )
    trainer = way.trainer(model)
    shown = Progress(batch, "sentences", lambda logs: f"loss {logs['val_loss']:.4f}")
    program.fit(
        way,
        trainer,
        data,
        shown,
        board,
        epochs=FLAGS.epochs,
        validation_data=feeding.in_order(unseen.tokens, unseen.tags, 64),
    )
    path = way.path(FLAGS.save)
    model.save(path)
    if not way.chief:
        return
    word_pieces.save(pieces, path)
    facts = {"tags": names}
    program.write_facts(path, facts)
    guessed = _tags(model, unseen, names)
    true = [s.tags for s in held]
    whole = spans.score(true, guessed)
    seconds = time.perf_counter() - started
    program.write_facts(path, {**facts, "held_out": {"f1": whole.f1, "seconds": seconds}})
    for kind in sorted({name[2:] for name in names} - {""}):
        print(_line(kind, spans.score(true, guessed, kind)))
    print(_line("all", whole))
    print(f"held out: span F1 {whole.f1:.4f}, after {seconds:.0f} s")
    program.finish(way, trainer, board)


def predict() -> None:
    """Writes the words of --predict with their tags, in CoNLL's format."""
    model, facts = program.load(FLAGS.save)
    size = transformer.size_of(model)
    pieces = word_pieces.load(FLAGS.save, size.vocabulary)
    if FLAGS.predict.endswith(".txt"):
        found = sentences.read_lines(FLAGS.predict, "predict")
    else:
        found = sentences.read(FLAGS.predict, "predict", tagged=False)
    context = min(FLAGS.context, size.longest)
    unseen = examples.encode(found, pieces, facts["tags"], context)
    tags = _tags(model, unseen, facts["tags"])
    tagged = [Sentence(s.words, its) for s, its in zip(found, tags, strict=True)]
    inference.write_text(sentences.conll(tagged))


def _sentences() -> tuple[list[Sentence], list[Sentence]]:
    """(training, held out), by page of the manual, or drawn at random from --data."""
    if FLAGS.data is not None:
        found = sentences.read(FLAGS.data, "data")
        training, held = ([found[i] for i in rows] for rows in tables.held_out(len(found)))
    else:
        training, held = _manual()
    return _some(training, FLAGS.sentences), _some(held, FLAGS.validation_sentences)


def _some(found: list[Sentence], most: int) -> list[Sentence]:
    """Sentences drawn at random, always the same."""
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:most]]


def _manual() -> tuple[list[Sentence], list[Sentence]]:
    """The manual's sentences, (training, held out) by the names of pages."""
    training: list[Sentence] = []
    held: list[Sentence] = []
    for path in packages.files("postgresql-doc-15", "*.html", "ner"):
        is_held = zlib.crc32(os.path.basename(path).encode()) % _HELD_OUT == 0
        (held if is_held else training).extend(pages.read(path))
    return training, held


def _start() -> tuple[transformer.Size, transformer.Weights, list[str]]:
    """The encoder's size, weights to begin with (none: at random), and vocabulary, by --init.

    Raises:
      ConfigError, DataError: there is no such model, or no sequence of --context fits it.
    """
    if FLAGS.init in ("minilm", "random"):
        size, values, pieces = pretrained.read("ner")
    else:
        model = program.load_model(FLAGS.init, "init")
        size, values = transformer.size_of(model), transformer.weights(model)
        pieces = word_pieces.load(FLAGS.init, size.vocabulary)
    if FLAGS.context > size.longest:
        raise tfps.ConfigError(
            f"--context={FLAGS.context} is more than the {size.longest} tokens that "
            f"--init={FLAGS.init} takes; give less"
        )
    return size, {} if FLAGS.init == "random" else values, pieces


def _tags(model: keras.Model, unseen: examples.Examples, names: Sequence[str]) -> list[list[str]]:
    """The tags that the model gives the words of each sentence."""
    found = program.outputs(model, unseen.tokens, 64).argmax(-1)
    return [[names[i] for i in its] for its in unseen.by_word(found)]


def _line(kind: str, score: spans.Score) -> str:
    return (
        f"  {kind:<10} precision {score.precision:.3f}  recall {score.recall:.3f}  "
        f"F1 {score.f1:.3f}  of {score.true:,}"
    )


def _compiled_model(
    size: transformer.Size, values: transformer.Weights, tags: int, updates: int
) -> keras.Model:
    model = network.build(size, tags, FLAGS.dropout)
    transformer.set_weights(model, values)
    model.compile(
        transformer.optimizer(FLAGS.learning_rate, FLAGS.warmup_steps, updates),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=examples.NO_TAG),
        steps_per_execution=FLAGS.steps_per_execution,
    )
    return model


if __name__ == "__main__":
    program.set_defaults(DATA, **DEFAULTS)
    task.main(main)
