"""Speech: what is read, spectrograms, symbols, what is measured, and the binary."""

import gzip
import io
import json
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from models.speech import (
    __main__ as binary,
    alphabet,
    clips,
    examples,
    features,
    measures,
    model as network,
)
from models.speech.board import ShowClips
from tests.models import in_process

RATE = 8000
TONES = {"a": 400.0, "b": 900.0, "c": 2000.0}  # Hz: how each letter sounds here.


def sound(text: str, rng) -> np.ndarray:
    """float32 [samples]: a tone of 0.1 s and a pause of 0.05 s for each letter, and noise."""
    time = np.arange(RATE // 10) / RATE
    parts = [0.3 * np.sin(2 * np.pi * TONES[c] * time) for c in text]
    wave = np.concatenate([np.append(part, np.zeros(RATE // 20)) for part in parts])
    return (wave + 0.01 * rng.normal(size=wave.shape)).astype(np.float32)


def wav(wave: np.ndarray) -> bytes:
    return tf.audio.encode_wav(wave[:, None], RATE).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of 2 to 5 of three letters, as LibriSpeech has them."""
    root = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    texts = {"".join(rng.choice(list(TONES), rng.integers(2, 6))) for _ in range(260)}
    for reader in range(2):
        chapter = root / f"{reader}" / "7"
        chapter.mkdir(parents=True)
        lines = []
        for i, text in enumerate(sorted(texts)[reader::2]):
            name = f"{reader}-7-{i:04}"
            (chapter / f"{name}.wav").write_bytes(wav(sound(text, rng)))
            lines.append(f"{name} {text.upper()}")
        (chapter / f"{reader}-7.trans.txt").write_text("\n".join(lines) + "\n")
    return root


def package(path, contents):
    """A package's files, as `make data-speech` leaves them."""
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_prompts_are_read(tmp_path):
    texts = "; Sounds\n\nhello: Hello, you!\nbeep: [a tone]\ndigits/1: 1\nlost: Lost.\nyear: 1984\n"
    docs = "./usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    package(tmp_path / "asterisk-core-sounds-en.tar", {docs: gzip.compress(texts.encode())})
    wave = np.linspace(-0.5, 0.5, 400, dtype=np.float32)
    folder = "./usr/share/asterisk/sounds/en_US_f_Allison/"
    names = [f"{folder}{name}.wav" for name in ("hello", "beep", "digits/1", "year")]
    package(tmp_path / "asterisk-core-sounds-en-wav.tar", dict.fromkeys(names, wav(wave)))
    with in_process.given(f"--packages={tmp_path}"):
        found = list(clips.read_prompts())
    assert [(clip.name.removeprefix(folder), clip.text) for clip in found] == [
        ("hello.wav", "hello you"),
        ("digits/1.wav", "one"),
    ]
    assert found[0].rate == RATE
    np.testing.assert_allclose(found[0].wave, wave, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Press 1, or * (a tone)", "press one or star"),
        ("3D audio", "three d audio"),
        ("H.323", ""),
        ("Don’t re-record...", "don't re record"),
        ("<beep>", ""),
    ],
)
def test_what_is_said(text, said):
    assert clips.spoken(text) == said


def test_flac_is_read_as_wav(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    wave = sound("abc", np.random.default_rng(0))
    soundfile.write(tmp_path / "x.flac", wave, RATE, subtype="PCM_16")
    (tmp_path / "x.wav").write_bytes(wav(wave))
    flac, plain = (clips.read(str(tmp_path / f"x.{ending}")) for ending in ("flac", "wav"))
    assert flac.rate == plain.rate == RATE
    np.testing.assert_allclose(flac.wave, plain.wave, atol=1e-4)


def test_a_tone_is_in_its_band():
    """Bands of equal width in mel: a tone of 1000 Hz is 999.99 mel, of 2840 from 60 to 4000 Hz."""
    time = np.arange(RATE) / RATE
    silence = np.zeros(RATE // 2)
    wave = np.append(np.sin(2 * np.pi * 1000 * time), silence).astype(np.float32)
    found = features.log_mel(wave, RATE, 40)
    assert found.shape == (1 + (len(wave) - 200) // 80, 40) and found.dtype == np.float32
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    mel = lambda hertz: 1127 * np.log1p(hertz / 700)  # noqa: E731
    centers = np.linspace(mel(60), mel(4000), 42)[1:-1]
    power = tf.abs(tf.signal.stft(wave[:800], 200, 80)).numpy() ** 2
    loudest = (power @ features._bands(40, power.shape[1], RATE)).mean(0).argmax()
    assert abs(centers[loudest] - mel(1000)) < centers[1] - centers[0]
    assert features.log_mel(np.zeros(3, np.float32), RATE, 40).shape == (1, 40)


def test_symbols_become_text_again():
    made = alphabet.Alphabet.of(["hello", "you"])
    assert made.characters == "ehlouy"
    symbols = made.encode("hell!o")
    np.testing.assert_array_equal(symbols, [2, 1, 3, 3, 4])
    assert alphabet.frames_needed(symbols) == 6
    assert made.decode([0, 2, 2, 1, 0, 3, 3, 0, 3, 4, 4]) == "hello"


def test_character_error_rate_counts_edits():
    assert measures.character_error_rate(["kitten", "ab"], ["sitting", ""]) == (3 + 2) / 8
    assert measures.character_error_rate(["ab"], ["ab"]) == 0
    assert measures.character_error_rate(["ab", "c"], ["", ""]) == 1


def test_a_text_is_on_one_side_only(folder):
    made = list(clips.read_librispeech(str(folder)))
    read = examples.read([*made, *made, clips.Clip("x", "abc" * 40, made[0].wave, RATE)], 8, 2.0)
    assert read.left_out == 1 and read.rate == RATE
    assert len(read.training.texts) + len(read.held_out.texts) == 2 * len(made)
    assert not set(read.training.texts) & set(read.held_out.texts)
    assert len(read.held_out.texts) == 2 * round(0.2 * len(made))


def test_an_output_is_made_of_three_frames():
    model = network.build(8, 5, 16, 2, 0.5)
    x = np.random.default_rng(0).normal(size=[2, 31, 8]).astype(np.float32)
    assert model(x).shape == (2, 11, 6)
    np.testing.assert_array_equal(model(x), model(x))
    assert np.abs(model(x, training=True) - model(x)).max() > 0


def test_clips_are_shown(tmp_path):
    spectrograms = [np.zeros([n, 4], np.float32) for n in (7, 9)]
    shown = ShowClips(
        spectrograms, ["a", "b"], lambda model, some: ["x"] * len(some), str(tmp_path)
    )
    shown.set_model(keras.Sequential())
    shown.on_train_begin()
    shown.on_epoch_end(0)
    events = [
        value
        for path in tmp_path.glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    ]
    pictures = [tf.io.decode_png(v.tensor.string_val[2]) for v in events if "spectro" in v.tag]
    assert sorted(tuple(p.shape) for p in pictures) == [(4, 7, 1), (4, 9, 1)]
    (text,) = [v.tensor.string_val[0].decode() for v in events if v.tag == "transcripts"]
    assert "| a | x |" in text


def test_it_learns_on_servers_and_transcribes(connect, capsys, folder, tmp_path):
    save, out = tmp_path / "m.keras", tmp_path / "found.tsv"
    in_process.train(
        binary, connect(workers=2), f"--data={folder}", f"--save={save}", f"--log_dir={tmp_path}",
        "--mels=16", "--conv_channels=32", "--conv_blocks=1", "--epochs=6", "--learning_rate=0.01",
        "--push=int8",
    )  # fmt: skip
    assert "character error rate" in capsys.readouterr().out
    facts = json.loads((tmp_path / "m.json").read_text())
    assert facts["alphabet"] == "abc" and facts["rate"] == RATE
    assert facts["held_out"]["cer"] < 0.2 < facts["held_out"]["most_frequent"]
    code, _, err = in_process.run(
        binary, capsys, f"--save={save}", f"--predict={folder}", f"--out={out}"
    )
    assert code == 0, err
    head, *rows = [line.split("\t") for line in out.read_text().splitlines()]
    truth = {clip.name: clip.text for clip in clips.read_librispeech(str(folder))}
    assert head == ["file", "transcript"]
    assert (
        measures.character_error_rate([truth[name] for name, _ in rows], [t for _, t in rows]) < 0.2
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "has no file asterisk-core-sounds-en.tar*; run make data-speech, or give"),
        (["--data={tmp}/none"], "has no file *.trans.txt; give a folder as LibriSpeech has it"),
        (["--data={tmp}/lost"], "has a line for b, but there is no {tmp}/lost/b.flac or .wav"),
        (["--data={tmp}/broken"], "a.wav is no sound that can be read; remove it"),
        (["--data={tmp}/few"], "--data has 1 rows; give at least 2"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, args, said):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, text, content in (
        ("lost", "b B", b""),
        ("broken", "a A", b"no sound"),
        ("few", "a A", wav(sound("abc", np.random.default_rng(0)))),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.trans.txt").write_text(f"{text}\n")
        (tmp_path / name / "a.wav").write_bytes(content)
    args = [f"--packages={tmp_path}", *(a.format(tmp=tmp_path) for a in args)]
    code, _, err = in_process.run(binary, capsys, f"--save={tmp_path}/m.keras", *args)
    assert code == tfps.exit_codes.FAILED
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert said.format(tmp=tmp_path) in line
