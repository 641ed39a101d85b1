"""The language model's parts, and the binary's answers to bad input."""

import math
import os
import pathlib
import re
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import tfps
from models import program
from models.gpt import __main__ as binary, model as gpt, sample, text, tokenizers
from models.gpt.measures import bits_per_byte
from tests import warm

ROOT = pathlib.Path(tfps.__file__).parent.parent
CODE = b"def f(x):\n    return x + 1\n\n\nclass A:\n\tname = 'b  c'\n" * 20


@pytest.fixture(scope="module")
def wordpiece():
    return tokenizers.WordPiece.learn([CODE], 300)


def test_tokens_decode_to_the_text(wordpiece):
    for tokenizer in (tokenizers.Bytes(), wordpiece):
        tokens = tokenizer.encode(CODE)
        assert tokens.dtype == np.int32
        assert tokens.max() < tokenizer.vocabulary
        assert tokenizer.decode(tokens) == CODE.decode()
    assert len(wordpiece.encode(CODE)) < len(CODE) / 2


def test_wordpiece_is_saved_beside_the_model(wordpiece, tmp_path):
    model = str(tmp_path / "m.keras")
    assert isinstance(tokenizers.of_saved_model(model, 256), tokenizers.Bytes)
    with pytest.raises(tfps.DataError, match="is missing"):
        tokenizers.of_saved_model(model, 300)
    wordpiece.save(tokenizers.vocabulary_path(model))
    with pytest.raises(tfps.DataError, match="not of one training"):
        tokenizers.of_saved_model(model, wordpiece.vocabulary + 1)
    loaded = tokenizers.of_saved_model(model, wordpiece.vocabulary)
    np.testing.assert_array_equal(loaded.encode(CODE), wordpiece.encode(CODE))
    assert "�" in loaded.decode(loaded.encode("é".encode()))


def test_files_are_held_out_whole():
    texts = {f"f{i}.py": b"%d" % i for i in range(200)}
    training, validation = text.split(texts)
    assert not set(training) & set(validation)
    assert len(training) + len(validation) == 200
    assert 2 <= len(validation) <= 25


def test_the_end_of_a_few_files_is_held_out():
    training, validation = text.split({"a": b"x" * 100})
    assert (len(training[0]), len(validation[0])) == (90, 10)


def test_windows_predict_the_next_token():
    windows = text.Windows([bytes(range(101))], tokenizers.Bytes(), 10, "training")
    assert windows.count == 10
    seen = []
    for x, y in windows.shuffled(5, seed=1).take(4):
        np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
        np.testing.assert_array_equal(y, x + 1)
        seen.append(x[:, 0].numpy())
    first, second = np.concatenate(seen[:2]), np.concatenate(seen[2:])
    assert len(set(first)) == 10
    assert not np.array_equal(first, second)
    (spread,) = list(windows.spread(5, 1))
    assert spread[0][:, 0].numpy().tolist() == [0, 20, 40, 60, 90]


def test_model_is_causal_and_plain_keras(tmp_path):
    model = gpt.build(50, 2, 16, 2, 12, 0.1)
    x = np.arange(12)[None] % 50
    y = model(x).numpy()
    assert y.shape == (1, 12, 50)
    changed = x.copy()
    changed[0, 8:] = 0
    np.testing.assert_allclose(model(changed).numpy()[:, :8], y[:, :8], atol=1e-5)
    assert not np.allclose(model(changed).numpy()[:, 9], y[:, 9])
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as saved:
        config = saved.read("config.json").decode()
    # So a process that has only Keras can load it.
    assert set(re.findall(r'"module": "(\w+)', config)) == {"keras"}
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(x), y)
    assert gpt.context_of(loaded) == 12


def test_sampling_is_that_of_the_model():
    model = gpt.build(256, 1, 16, 2, 8, 0.0)
    prompt = np.array([1, 2, 3] * 5)
    drawn = list(sample.tokens(model, prompt, 3, temperature=0, seed=0))
    history = list(prompt)
    for token in drawn:
        assert token == int(tf.argmax(model(np.array([history[-8:]]))[0, -1]))
        history.append(token)
    texts = [sample.text(model, tokenizers.Bytes(), "ab", 5, 1.0, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("ab")
    with pytest.raises(tfps.ConfigError, match="empty"):
        sample.text(model, tokenizers.Bytes(), "", 5)


def test_bits_per_byte():
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8)
    assert bits_per_byte(math.log(256), 4.0) == pytest.approx(2)


def run(tmp_path, *args):
    environ = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    return warm.run(["-m", "models.gpt", *args], ROOT, environ, tmp_path)


def in_process(capsys, *args):
    """(exit code, standard output, standard error) of the binary's main function."""
    with flagsaver.flagsaver():
        program.set_defaults(binary.DATA, **binary.DEFAULTS)
        flags.FLAGS(["gpt", *args])
        code = binary.main(["gpt"])
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("args", "environ", "said", "expected"),
    [
        (["--data={tmp}/nothing*"], {}, "matches no file", 1),
        (["--data={tmp}/empty.txt"], {}, "empty.txt is empty", 1),
        (["--data={tmp}/binary"], {}, "is binary (a zero byte at offset 3)", 1),
        (["--data={tmp}/short.txt", "--context=64"], {}, "fewer than one window of --con", 1),
        (["--width=10", "--heads=4"], {}, "--width=10 is not a multiple of --heads=4", 2),
        (["--save=model.h5"], {}, "does not end in .keras", 2),
        (["--generate=x", "--save={tmp}/none.keras"], {}, "none.keras does not exist", 2),
        ([], {"TF_CONFIG": "{"}, "TF_CONFIG is not JSON", 3),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, monkeypatch, capsys, args, environ, said, expected):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "binary").write_bytes(b"abc\0def")
    (tmp_path / "short.txt").write_bytes(b"short")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    code, _, printed = in_process(capsys, *(a.format(tmp=tmp_path) for a in args))
    assert code == expected
    (line,) = printed.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.processes
def test_a_loss_that_is_lost_gets_one_line(tmp_path):
    """As a process: TensorFlow's own words must not surround it."""
    (tmp_path / "long.txt").write_bytes(CODE)
    done = run(
        tmp_path,
        f"--data={tmp_path}/long.txt", "--learning_rate=1e30", "--warmup_steps=0", "--context=16",
        "--layers=1", "--width=16", f"--save={tmp_path}/m.keras", f"--log_dir={tmp_path}/log",
        "--steps_per_epoch=40", "--epochs=2",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "the loss became nan" in line
    assert not (tmp_path / "m.keras").exists()


@pytest.mark.processes
def test_wordpiece_run_and_generation(tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes(CODE * 10)
    small = [
        f"--save={tmp_path}/m.keras", "--layers=1", "--width=16", "--heads=2", "--context=16",
        "--generate_tokens=5",
    ]  # fmt: skip
    done = run(
        tmp_path,
        f"--data={tmp_path}/text.txt", "--tokenizer=wordpiece", "--vocabulary=300",
        f"--log_dir={tmp_path}/log", "--epochs=2", "--steps_per_epoch=6", "--validation_steps=2",
        "--mixed_precision=bfloat16", "--dropout=0.1", *small,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bits per byte") == 3
    assert (tmp_path / "m.vocab.txt").exists()
    assert list((tmp_path / "log" / "train").glob("events*"))
    code, out, err = in_process(capsys, "--generate=def ", "--temperature=0.5", *small)
    assert code == 0, err
    assert out.startswith("def ")


@pytest.mark.processes
def test_the_environment_says_how_long_a_chief_waits(tmp_path):
    program = "from models import task; task.FLAGS(['x']); print(task.FLAGS.startup_timeout)"
    environ = {**os.environ, "TFPS_STARTUP_TIMEOUT": "3600"}
    done = warm.run(["-c", program], ROOT, environ, tmp_path)
    assert done.stdout.split()[-1] == "3600.0", done.stderr


def test_help_names_all_flags():
    text = flags.FLAGS.module_help(binary)
    for flag in ("data", "workers", "push", "steps_per_execution", "startup_timeout"):
        assert re.search(rf"--(\[no\])?{flag}:", text), flag
