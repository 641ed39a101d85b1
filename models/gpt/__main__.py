"""Trains a GPT on text files, or samples from a trained one.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.gpt --data='src/**/*.py' --save=code.keras
  python -m models.gpt --save=code.keras --generate='def '
  python -m models.gpt --preset=gpt2 --data='shards/*.txt,more/*.txt'
"""

import os
import time
from collections.abc import Iterable, Sequence

import keras
import numpy as np
from absl import flags

from models import program, streams, task, text_flags, texts
from models.gpt import model as gpt, presets, sample, stream, text, tokenizers
from models.gpt.measures import bits_per_byte, perplexity
from models.progress import Progress

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(text_flags)

DATA = (
    "Text to train on: a folder, a glob or a file, or several with commas between them. Default: "
    "Python's standard library."
)
_IN_MEMORY = 64 << 20  # bytes of text that the chief reads at most by itself
_BYTES_PER_TOKEN = 5  # More than tokens of most texts have on average.
_LEAST = 1 << 20  # bytes of held-out text, from which the number of tokens is guessed, too

DEFAULTS = {
    "batch_size": 16,
    "epochs": 4,
    "vocabulary": 4096,
    "steps_per_epoch": None,
    "save": "runs/gpt/model.keras",
}

flags.DEFINE_enum(
    "preset",
    None,
    list(presets.PRESETS),
    "Size of the network, of tokens and windows; gpt2 has 124 million parameters. Other flags go "
    "first.",
)
flags.DEFINE_boolean(
    "stream",
    None,
    "The workers read the text while they train, so that it need not fit in memory. Default: where "
    f"the files have more than {_IN_MEMORY >> 20} MiB together. If not, the chief reads it first.",
)
flags.DEFINE_string(
    "vocabulary_file",
    None,
    "Word pieces to use, one on each line. If there is no such file, they are learned and put "
    "there.",
)
flags.DEFINE_boolean("tied", False, "Compute logits with the embeddings of the tokens.")
flags.DEFINE_enum(
    "tokenizer",
    "bytes",
    ["bytes", "wordpiece"],
    "Bytes as tokens, or word pieces learned from the data and saved beside the model.",
)
flags.DEFINE_integer("validation_steps", 64, "Most batches in a validation.", lower_bound=1)
flags.DEFINE_enum(
    "mixed_precision", "none", ["none", "bfloat16", "float16"], "What the layers compute in."
)
flags.DEFINE_boolean(
    "jit_compile", None, "Compile with XLA. Default: where Keras thinks that the model allows it."
)
flags.DEFINE_string("generate", None, "Do not train; go on with this text, by the model of --save.")
flags.DEFINE_integer("generate_tokens", 300, "Tokens to sample.", lower_bound=1)
flags.DEFINE_float("temperature", 0.8, "Of sampling; 0 takes the likeliest token.", lower_bound=0.0)


def main(argv: list[str]) -> int:
    """Trains, or generates text; returns the exit code."""
    return program.run(argv, train, None if FLAGS.generate is None else generate)


def train(connect: task.Connect) -> None:
    """Runs the chief: reads the data, trains, and saves the model."""
    presets.use(FLAGS.preset)
    program.check_flags()
    text_flags.check_heads()
    started = time.perf_counter()
    tokenizer, training, validation = _load()
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    together = way.batches_per_step
    batches = FLAGS.steps_per_epoch or training.count // FLAGS.batch_size
    steps = max(1, batches // together)
    with way.scope():
        model = _compiled_model(tokenizer.vocabulary, way.updates(steps * FLAGS.epochs))
    log_dir = program.log_dir()
    say(
        f"{model.count_params():,} parameters on {way.describe()}, {training.describe()}",
        flush=True,
    )
    trainer = way.trainer(model)
    shown = Progress(
        FLAGS.batch_size * together * FLAGS.context,
        "tokens",
        lambda logs: _quality(logs["val_loss"], validation),
    )
    history = program.fit(
        way,
        trainer,
        training.feed(way, FLAGS.batch_size * together, FLAGS.seed),
        shown,
        log_dir,
        epochs=FLAGS.epochs,
        steps_per_epoch=steps,
        validation_data=validation.spread(
            FLAGS.batch_size * together, max(1, FLAGS.validation_steps // together)
        ),
    )
    _save(model, tokenizer, way.path(FLAGS.save))
    if not way.chief:
        return
    loss = history.history["val_loss"][-1]
    print("\n--- a sample ---")
    print(sample.text(model, tokenizer, "def ", FLAGS.generate_tokens, FLAGS.temperature))
    print("---\n")
    print(f"validation: {_quality(loss, validation)} after {time.perf_counter() - started:.0f} s")
    program.finish(way, trainer, log_dir)


def generate() -> None:
    """Prints a sample of the saved model."""
    model = program.load_model(FLAGS.save)
    tokenizer = tokenizers.of_saved_model(FLAGS.save, model.output_shape[-1])
    seed = FLAGS.seed or int(np.random.default_rng().integers(1 << 31))
    print(
        sample.text(
            model, tokenizer, FLAGS.generate, FLAGS.generate_tokens, FLAGS.temperature, seed
        )
    )


def _quality(loss: float, validation: text.Windows) -> str:
    bits = bits_per_byte(loss, validation.bytes_per_token)
    return f"perplexity {perplexity(loss):.2f}, {bits:.3f} bits per byte"


def _load() -> tuple[tokenizers.Tokenizer, text.Windows | stream.Stream, text.Windows]:
    """Returns the tokenizer, what is trained on, and what is held out."""
    files = texts.standard_library() if FLAGS.data is None else texts.find(FLAGS.data)
    if stream.is_large(files, _IN_MEMORY) if FLAGS.stream is None else FLAGS.stream:
        return _open(files)
    training, validation = text.split(texts.read(files))
    tokenizer = _tokenizer(training)
    return (
        tokenizer,
        text.Windows(training, tokenizer, FLAGS.context, "training"),
        text.Windows(validation, tokenizer, FLAGS.context, "validation"),
    )


def _open(
    files: Sequence[str],
) -> tuple[tokenizers.Tokenizer, stream.Stream, text.Windows]:
    """As `_load`, of text of which the chief reads no more than two samples."""
    texts.check(files)
    training, held = streams.split(files)
    tokenizer = _tokenizer(streams.sample(training, tokenizers.SAMPLE))
    wanted = FLAGS.validation_steps * FLAGS.batch_size * FLAGS.context
    some = list(streams.sample(held, max(_BYTES_PER_TOKEN * wanted, _LEAST)))
    validation = text.Windows(some, tokenizer, FLAGS.context, "validation")
    return (
        tokenizer,
        stream.Stream(training, tokenizer, FLAGS.context, validation.bytes_per_token),
        validation,
    )


def _tokenizer(training: Iterable[bytes]) -> tokenizers.Tokenizer:
    """The tokenizer of --tokenizer, which learns from the texts if it has to."""
    if FLAGS.tokenizer == "bytes":
        return tokenizers.Bytes()
    path = FLAGS.vocabulary_file
    if path is not None and os.path.exists(path):
        return tokenizers.WordPiece.load(path)
    print("learning word pieces", flush=True)
    learned = tokenizers.WordPiece.learn(training, FLAGS.vocabulary)
    if path is not None:
        learned.save(path)
    return learned


def _compiled_model(vocabulary: int, updates: int) -> keras.Model:
    if FLAGS.mixed_precision != "none":
        keras.mixed_precision.set_global_policy(f"mixed_{FLAGS.mixed_precision}")
    model = gpt.build(
        vocabulary,
        FLAGS.layers,
        FLAGS.width,
        FLAGS.heads,
        FLAGS.context,
        FLAGS.dropout,
        FLAGS.tied,
    )
    warmup = min(FLAGS.warmup_steps, updates // 2)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else FLAGS.learning_rate,
        decay_steps=max(1, updates - warmup),
        alpha=0.1,
        warmup_target=FLAGS.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.1, beta_2=0.99, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embeddings"])
    model.compile(
        optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=FLAGS.steps_per_execution,
        jit_compile="auto" if FLAGS.jit_compile is None else FLAGS.jit_compile,
    )
    return model


def _save(model: keras.Model, tokenizer: tokenizers.Tokenizer, path: str) -> None:
    model.save(path)
    vocabulary = tokenizers.vocabulary_path(path)
    if isinstance(tokenizer, tokenizers.WordPiece):
        tokenizer.save(vocabulary)
    elif os.path.exists(vocabulary):
        os.remove(vocabulary)  # It belonged to an earlier model of this name.


if __name__ == "__main__":
    program.set_defaults(DATA, **DEFAULTS)
    task.main(main)
