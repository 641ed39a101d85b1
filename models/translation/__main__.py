"""Trains a transformer that translates, by default the help of LibreOffice into German.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.translation
  python -m models.translation --data=corpus --target_language=fr --save=french.keras
  python -m models.translation --save=french.keras --predict=new.txt --out=translated.tsv
"""

import dataclasses
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfps
from models import feeding, inference, packages, program, task
from models.gpt.measures import perplexity
from models.gpt.tokenizers import WordPiece, vocabulary_path
from models.progress import Progress
from models.translation import beam, model as network, pairs
from models.translation.chrf import chrf
from models.translation.retrieval import Neighbours
from models.translation.tokens import Tokens, with_marks

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(packages)
flags.adopt_module_key_flags(inference)

DATA = (
    "How the names of two files begin, of which line n of one is the translation of line n of the "
    "other; --source_language and --target_language are their endings. Default: the help of "
    "LibreOffice, which `make data-translation` downloads."
)
DEFAULTS = {
    "batch_size": 32,
    "epochs": 6,
    "learning_rate": 2e-3,
    "steps_per_execution": 4,
    "save": "runs/translation/model.keras",
}

flags.DEFINE_string("source_language", "en", "Ending of the file of --data to translate from.")
flags.DEFINE_string("target_language", "de", "Ending of the file of --data to translate into.")
flags.DEFINE_integer("pieces", 4000, "Most word pieces to learn.", lower_bound=50)
flags.DEFINE_integer("max_tokens", 32, "Longer texts are left out of training.", lower_bound=4)
flags.DEFINE_integer("blocks", 2, "Blocks of the encoder, and of the decoder.", lower_bound=1)
flags.DEFINE_integer("residual_width", 128, "Width of the residual stream.", lower_bound=1)
flags.DEFINE_integer("attention_heads", 4, "Attention heads in a block.", lower_bound=1)
flags.DEFINE_float("branch_dropout", 0.1, "Dropout rate.", lower_bound=0.0, upper_bound=0.95)
flags.DEFINE_integer("beam", 4, "Beginnings that the beam search follows.", lower_bound=1)
flags.DEFINE_float("length_penalty", 0.6, "Exponent; more prefers longer ones.", lower_bound=0.0)
flags.DEFINE_integer("measured", 400, "Most pairs held out to translate.", lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Pairs that are not too long, with their tokens.

    Attributes:
      pairs: the texts.
      sources: int32 [n] for each pair.
      targets: int32 [n] for each pair, from BEGIN to END.
    """

    pairs: list[pairs.Pair]
    sources: list[np.ndarray]
    targets: list[np.ndarray]


def main(argv: list[str]) -> int:
    """Trains, or translates; returns the exit code."""
    return program.run(argv, train, None if FLAGS.predict is None else predict)


def train(connect: task.Connect) -> None:
    """Runs the chief: reads the pairs, trains, and tells how good translations are."""
    _check_flags()
    started = time.perf_counter()
    if FLAGS.data is None:
        read = pairs.read_help()
    else:
        read = pairs.read_lines(FLAGS.data, FLAGS.source_language, FLAGS.target_language)
    tokens = Tokens.learn([text for pair in read.training for text in pair], FLAGS.pieces)
    training, held = (_encoded(some, tokens) for some in (read.training, read.held_out))
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    batch = FLAGS.batch_size * way.batches_per_step
    data = _batches(training, batch, FLAGS.seed)
    with way.scope():
        updates = way.updates(FLAGS.epochs * data.cardinality().numpy())
        model = _compiled_model(tokens.vocabulary, updates)
    board = program.log_dir()
    say(
        f"{model.count_params():,} parameters on {way.describe()}, {len(training.pairs):,} pairs "
        f"to train on, {len(held.pairs):,} held out, of up to {FLAGS.max_tokens} of "
        f"{tokens.vocabulary:,} tokens",
        flush=True,
    )
    trainer = way.trainer(model)
    program.fit(
        way,
        trainer,
        data,
        Progress(batch, "pairs", lambda logs: f"perplexity {perplexity(logs['val_loss']):.2f}"),
        board,
        epochs=FLAGS.epochs,
        validation_data=_batches(held, batch),
    )
    path = way.path(FLAGS.save)
    model.save(path)
    tokens.pieces.save(vocabulary_path(path))
    if not way.chief:
        return
    held_out = _measured(model, tokens, training, held)
    held_out["seconds"] = time.perf_counter() - started
    program.write_facts(path, {"held_out": held_out})
    print(
        f"held out: chrF {held_out['chrf']:.2f} (of the source itself {held_out['copied']:.2f}, of "
        f"the nearest text's translation {held_out['nearest']:.2f}), after "
        f"{held_out['seconds']:.0f} s"
    )
    program.finish(way, trainer, board)


def predict() -> None:
    """Writes each line of --predict, and its translation."""
    model = program.load_model(FLAGS.save)
    path = vocabulary_path(FLAGS.save)
    try:
        tokens = Tokens(WordPiece.load(path))
    except (OSError, ValueError) as e:
        raise tfps.ConfigError(
            f"--save={FLAGS.save}: {path} cannot be read; copy it beside the model"
        ) from e
    texts = pairs.read_texts(FLAGS.predict, "predict")
    inference.write(["source", "translation"], [texts, _translated(model, tokens, texts)])


def _check_flags() -> None:
    program.check_flags()
    if FLAGS.residual_width % FLAGS.attention_heads:
        raise tfps.ConfigError(
            f"--residual_width={FLAGS.residual_width} is not a multiple of "
            f"--attention_heads={FLAGS.attention_heads}; change one of them"
        )


def _encoded(some: Sequence[pairs.Pair], tokens: Tokens) -> Encoded:
    sources, targets = (tokens.encode([pair[i] for pair in some]) for i in range(2))
    lengths = zip(map(len, sources), map(len, targets), strict=True)
    fit = [i for i, both in enumerate(lengths) if max(both) <= FLAGS.max_tokens]
    return Encoded(
        [some[i] for i in fit], [sources[i] for i in fit], [with_marks(targets[i]) for i in fit]
    )


def _batches(some: Encoded, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
    data = feeding.by_length([some.sources, some.targets], batch_size, seed)
    return data.map(
        lambda source, target: ({"source": source, "target": target[:, :-1]}, target[:, 1:])
    )


def _translated(model: keras.Model, tokens: Tokens, texts: Sequence[str]) -> list[str]:
    """Translations; those of long texts are put together from those of their parts."""
    most = network.longest_of(model) - 1  # --max_tokens, when the model was trained.
    parts = [tokens.cut(text, most) for text in texts]
    sources = tokens.encode([part for some in parts for part in some])
    found = iter(beam.translate(model, sources, FLAGS.beam, FLAGS.length_penalty))
    return [" ".join(tokens.decode(next(found)) for _ in some) for some in parts]


def _measured(
    model: keras.Model, tokens: Tokens, training: Encoded, held: Encoded
) -> dict[str, float]:
    """chrF on pairs held out: of the model, of sources, and of their neighbours' translations."""
    some = np.random.default_rng(0).permutation(len(held.pairs))[: FLAGS.measured]
    sources, references = ([held.pairs[i][side] for i in some] for side in range(2))
    ours = _translated(model, tokens, sources)
    neighbours = Neighbours(training.sources, tokens.vocabulary)
    nearest = [training.pairs[neighbours.nearest(held.sources[i])][1] for i in some]
    for source, one in list(zip(sources, ours, strict=True))[:3]:
        print(f"source: {source}\ntranslation: {one}")
    return {
        "chrf": chrf(ours, references),
        "copied": chrf(sources, references),
        "nearest": chrf(nearest, references),
    }


def _compiled_model(vocabulary: int, updates: int) -> keras.Model:
    # A target has two marks; one of them is in the input.
    model = network.build(
        vocabulary,
        FLAGS.blocks,
        FLAGS.residual_width,
        FLAGS.attention_heads,
        FLAGS.max_tokens + 1,
        FLAGS.branch_dropout,
    )
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, updates - updates // 10),
        alpha=0.05,
        warmup_target=FLAGS.learning_rate,
        warmup_steps=updates // 10,
    )
    model.compile(
        keras.optimizers.Adam(rate, beta_2=0.98, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0),
        steps_per_execution=FLAGS.steps_per_execution,
    )
    return model


if __name__ == "__main__":
    program.set_defaults(DATA, **DEFAULTS)
    task.main(main)
