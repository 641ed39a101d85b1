"""Trains a network that writes down what is said, by default in prompts of a telephone exchange.

Without TF_CONFIG this program starts a cluster on this machine. With TF_CONFIG it is the task that
the variable names: the chief trains, workers and ps serve.

  python -m models.speech
  python -m models.speech --data=LibriSpeech/dev-clean --save=libri.keras
  python -m models.speech --save=libri.keras --predict=recordings --out=transcripts.tsv
"""

import collections
import functools
import time

import keras
import tensorflow as tf
from absl import flags

from models import feeding, inference, packages, program, task
from models.progress import Progress
from models.speech import clips, examples, features, measures, model as network
from models.speech.alphabet import Alphabet
from models.speech.board import ShowClips
from models.speech.transcribe import transcripts

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(program)
flags.adopt_module_key_flags(packages)
flags.adopt_module_key_flags(inference)

DATA = (
    "A folder as LibriSpeech has it: FLAC or WAV, and files *.trans.txt beside them. Default: "
    "prompts of Asterisk, which `make data-speech` downloads."
)
DEFAULTS = {
    "batch_size": 8,
    "epochs": 60,
    "learning_rate": 2e-3,
    "steps_per_execution": 4,
    "save": "runs/speech/model.keras",
}

flags.DEFINE_integer("mels", 40, "Bands of the mel spectrogram.", lower_bound=1)
flags.DEFINE_integer("conv_channels", 160, "Channels of the convolutions.", lower_bound=1)
flags.DEFINE_integer("conv_blocks", 5, "Residual blocks.", lower_bound=1)
flags.DEFINE_float("conv_dropout", 0.15, "Dropout rate.", lower_bound=0.0, upper_bound=0.95)
flags.DEFINE_float("max_seconds", 12.0, "Longer clips are left out.", lower_bound=0.1)


def main(argv: list[str]) -> int:
    """Trains, or transcribes; returns the exit code."""
    return program.run(argv, train, None if FLAGS.predict is None else predict)


def train(connect: task.Connect) -> None:
    """Runs the chief: reads the clips, trains, and tells how much is written down wrongly."""
    program.check_flags()
    started = time.perf_counter()
    recorded = clips.read_librispeech(FLAGS.data) if FLAGS.data else clips.read_prompts()
    read = examples.read(recorded, FLAGS.mels, FLAGS.max_seconds)
    training, held = read.training, read.held_out
    alphabet = Alphabet.of(training.texts)
    way = connect()
    say = program.printer(way)
    keras.utils.set_random_seed(FLAGS.seed)
    batch = FLAGS.batch_size * way.batches_per_step
    data = _batches(training, alphabet, batch, FLAGS.seed)
    with way.scope():
        updates = way.updates(FLAGS.epochs * data.cardinality().numpy())
        model = _compiled_model(len(alphabet.characters), updates)
    board = program.log_dir()
    say(
        f"{model.count_params():,} parameters on {way.describe()}, {len(training.texts):,} clips "
        f"to train on, {len(held.texts):,} held out, {read.left_out} left out",
        flush=True,
    )
    trainer = way.trainer(model)
    transcribe = functools.partial(transcripts, alphabet)
    program.fit(
        way,
        trainer,
        data,
        Progress(batch, "clips", lambda logs: f"CTC loss {logs['val_loss']:.2f}"),
        board,
        own_callbacks=[ShowClips(held.spectrograms, held.texts, transcribe, board)],
        epochs=FLAGS.epochs,
        validation_data=_batches(held, alphabet, batch),
    )
    path = way.path(FLAGS.save)
    model.save(path)
    if not way.chief:
        return
    facts = {"alphabet": alphabet.characters, "rate": read.rate}
    program.write_facts(path, facts)
    found = transcribe(model, held.spectrograms)
    ((always, _),) = collections.Counter(training.texts).most_common(1)
    held_out = {
        "cer": measures.character_error_rate(held.texts, found),
        "most_frequent": measures.character_error_rate(held.texts, [always] * len(found)),
        "seconds": time.perf_counter() - started,
    }
    program.write_facts(path, {**facts, "held_out": held_out})
    for text, one in list(zip(held.texts, found, strict=True))[:3]:
        print(f"said: {text}\nrecognized: {one}")
    print(
        f"held out: character error rate {held_out['cer']:.4f} (of always {always!r} "
        f"{held_out['most_frequent']:.4f}), after {held_out['seconds']:.0f} s"
    )
    program.finish(way, trainer, board)


def predict() -> None:
    """Writes what is said in each clip of --predict."""
    model, facts = program.load(FLAGS.save)
    mels = model.input_shape[-1]
    paths = clips.find(FLAGS.predict)
    spectrograms = []
    for clip in map(clips.read, paths):
        examples.check_rate(clip, facts["rate"], f"--save={FLAGS.save} expects")
        spectrograms.append(features.log_mel(clip.wave, clip.rate, mels))
    found = transcripts(Alphabet(facts["alphabet"]), model, spectrograms)
    inference.write(["file", "transcript"], [paths, found])


def _batches(
    some: examples.Examples, alphabet: Alphabet, batch_size: int, seed: int | None = None
) -> tf.data.Dataset:
    labels = [alphabet.encode(text) for text in some.texts]
    return feeding.by_length([some.spectrograms, labels], batch_size, seed)


def _compiled_model(symbols: int, updates: int) -> keras.Model:
    model = network.build(
        FLAGS.mels, symbols, FLAGS.conv_channels, FLAGS.conv_blocks, FLAGS.conv_dropout
    )
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, updates - updates // 10),
        warmup_target=FLAGS.learning_rate,
        warmup_steps=updates // 10,
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=1e-2, global_clipnorm=5.0),
        keras.losses.CTC(),
        steps_per_execution=FLAGS.steps_per_execution,
    )
    return model


if __name__ == "__main__":
    program.set_defaults(DATA, **DEFAULTS)
    task.main(main)
