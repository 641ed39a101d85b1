"""A language model's text that the workers read: its tokens, its shares, presets and a restart."""

import functools
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import tfps
from models import streams, texts
from models.gpt import __main__ as binary, model as gpt, presets, stream, tokenizers
from tests.models import in_process
from tests.training.test_snapshots import assert_equal, killed

CODE = "def f(x):\n    return x + 1  \n\n\nclass Ä:\n\tname = 'b  c½ 12'\n" + 50 * "long" + "\n"


@pytest.fixture
def shards(tmp_path):
    """Seven files of different lengths, of which no line is twice."""
    for i in range(7):
        lines = [f"{'    ' * (n % 3)}line {n} of {i}" for n in range(300 + 100 * i)]
        (tmp_path / f"{i}.txt").write_text("\n".join(lines) + "\n")
    return sorted(str(path) for path in tmp_path.glob("*.txt"))


@pytest.fixture(scope="module")
def wordpiece():
    return tokenizers.WordPiece.learn([CODE.encode() * 20, b"    line 1 of 2\n" * 30], 300)


@pytest.mark.parametrize("kind", ["bytes", "wordpiece"])
def test_shards_are_read_in_order(shards, wordpiece, kind):
    tokenizer = wordpiece if kind == "wordpiece" else tokenizers.Bytes()
    found = list(stream.windows(streams.Part(shards, "all"), tokenizer, 15, None))
    whole = b"".join(pathlib.Path(name).read_bytes() for name in shards)
    expected = tokenizer.encode(b"\n" + whole.removesuffix(b"\n"))
    assert len(found) == len(expected) // 16 > 300
    np.testing.assert_array_equal(np.concatenate(found), expected[: 16 * len(found)])


def test_tokens_are_the_same_in_a_graph(wordpiece):
    whole = CODE.encode() + b"\xff no UTF-8 \xc3\xa9\xe2\x80\x83"
    for tokenizer in (tokenizers.Bytes(), wordpiece):
        found = tf.data.Dataset.from_tensors(whole).map(tokenizer.tokens)
        np.testing.assert_array_equal(next(iter(found)), tokenizer.encode(whole))
        shorter = CODE[: CODE.index("long")]
        assert tokenizer.decode(tokenizer.encode(shorter.encode())) == shorter


@pytest.mark.long
def test_each_worker_has_its_share(shards):
    part = streams.split(shards)[0]
    lines = [b"\n" + line for line in streams.lines(part, None).as_numpy_iterator()]
    made = stream.Stream(part, tokenizers.Bytes(), 31, 1.0)
    assert made.count == pytest.approx(len(b"".join(lines)) / 32, rel=0.1)
    assert "training text in 7 files" in made.describe()
    # Of one file the windows are the same in each pass.
    made = stream.Stream(streams.split(shards[-1:])[0], tokenizers.Bytes(), 31, 1.0)
    seen = []
    for worker in range(2):
        ours = set()
        for x, y in made.batches(4, 1, tfps.Context(worker, 2)).take(100):
            np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
            ours.update(bytes(window) for window in x.numpy().astype(np.uint8))
        seen.append(ours)
    assert not seen[0] & seen[1] and min(map(len, seen)) > 150


def test_a_sample_has_equal_shares_of_files(shards):
    part = streams.Part(shards, "training")
    found = list(streams.sample(part, 3500))
    assert found == list(streams.sample(part, 3500))
    assert {int(some.split(b"\n")[0].split()[-1]) for some in found} == set(range(7))
    assert max(map(len, found)) <= 500 and 3500 - 7 * 30 <= len(b"".join(found)) <= 3500
    everything = b"".join(streams.sample(streams.Part(shards, "all"), 1 << 30))
    whole = b"".join(pathlib.Path(name).read_bytes() for name in shards)
    assert sorted(everything.splitlines()) == sorted(whole.splitlines())


def test_a_sample_of_many_files_is_as_large_as_asked(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"line of {i:02}\n" * 4)
    part = streams.Part([str(path) for path in tmp_path.iterdir()], "all")
    found = list(streams.sample(part, 1000))
    assert len(b"".join(found)) == 968  # Of 22 files, each 44 bytes.
    assert set(found) < {f"line of {i:02}\n".encode() * 4 for i in range(60)}


def test_several_patterns(tmp_path):
    for name in ("a1.txt", "a2.txt", "b.md", "c,d.txt"):
        (tmp_path / name).write_text("x")
    found = texts.find(f"{tmp_path}/b.*,{tmp_path}/a*.txt,{tmp_path}/a1.txt")
    assert [name.rpartition("/")[2] for name in found] == ["a1.txt", "a2.txt", "b.md"]
    assert texts.find(f"{tmp_path}/c,d.txt") == [f"{tmp_path}/c,d.txt"]
    with pytest.raises(tfps.DataError, match=r"none\* matches no file"):
        texts.find(f"{tmp_path}/b.*,{tmp_path}/none*")


def test_a_preset_gives_defaults():
    with in_process.given("--preset=small", "--width=64", "--heads=4"):
        presets.use(flags.FLAGS.preset)
        assert (flags.FLAGS.layers, flags.FLAGS.width, flags.FLAGS.context) == (6, 64, 256)
        assert (flags.FLAGS.tokenizer, flags.FLAGS.tied) == ("wordpiece", True)
    with in_process.given("--preset=tiny"):
        presets.use(flags.FLAGS.preset)
        assert all(flags.FLAGS[n].value == flags.FLAGS[n].default for n in presets.PRESETS["tiny"])


def test_gpt2_has_the_published_number_of_parameters():
    size = presets.PRESETS["gpt2"]
    one, two = (
        gpt.build(8, n, size["width"], size["heads"], size["context"], 0.0, size["tied"])
        for n in (1, 2)
    )
    block = two.count_params() - one.count_params()
    rest = one.count_params() - block + (size["vocabulary"] - 8) * size["width"]
    assert size["layers"] * block + rest == 124_439_808


def test_tied_logits_are_products_with_the_embeddings(tmp_path):
    model = gpt.build(50, 1, 16, 2, 12, 0.0, tied=True)
    x = np.arange(12)[None]
    before = keras.Model(model.inputs, model.get_layer("norm").output)(x)
    (rows,) = model.get_layer("token").get_weights()
    np.testing.assert_allclose(model(x), before @ rows.T, atol=1e-5)
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(x), model(x))


def small_model():
    keras.utils.set_random_seed(3)
    model = gpt.build(256, 1, 8, 2, 16, 0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, steps_per_execution=2)
    return model


def test_a_run_that_is_cut_off_goes_on_at_its_place_in_the_stream(connect, tmp_path, shards):
    made = stream.Stream(streams.split(shards)[0], tokenizers.Bytes(), 16, 1.0)
    fn = functools.partial(made.batches, 2, 0)
    strategy = connect(workers=1, ps=1)

    def trainer(name):
        snapshots = tfps.Snapshots(tmp_path / name, every=None, every_updates=4)
        return tfps.Trainer(small_model(), strategy, snapshots=snapshots)

    whole, cut, again = trainer("whole"), trainer("cut"), trainer("cut")
    expected = whole.fit(fn, epochs=2, steps_per_epoch=12, verbose=0).history["loss"]
    killed(cut, fn, epochs=2, steps_per_epoch=12, at=(1, 6))
    history = again.fit(fn, epochs=2, steps_per_epoch=12, verbose=0).history["loss"]
    assert history == expected
    assert_equal(again, whole)


def test_it_learns_from_a_stream_on_servers(connect, capsys, tmp_path, shards):
    save = tmp_path / "m.keras"
    args = [
        f"--data={tmp_path}/[0-3].txt,{tmp_path}/[4-6].txt", "--stream", f"--save={save}",
        f"--log_dir={tmp_path}/board", "--epochs=2", "--steps_per_epoch=60", "--batch_size=4",
        "--context=16", "--layers=1", "--width=32", "--heads=2", "--learning_rate=0.01",
        "--warmup_steps=5", "--validation_steps=4", "--generate_tokens=2", "--tied",
        "--tokenizer=wordpiece", "--vocabulary=300", f"--vocabulary_file={tmp_path}/v.txt",
    ]  # fmt: skip
    in_process.train(binary, connect(workers=2), *args)
    out = capsys.readouterr().out
    assert "learning word pieces" in out and "tokens of training text in 7 files" in out
    bits = float(out.split("validation: ")[-1].split(", ")[1].split()[0])
    assert bits < 2  # Without training it would be log2(300) for each token, more than 3.
    assert (tmp_path / "v.txt").read_text() == (tmp_path / "m.vocab.txt").read_text()
    in_process.train(binary, connect(workers=2), *args, "--steps_per_epoch=4")
    assert "learning word pieces" not in capsys.readouterr().out


def test_streaming_is_chosen_by_size(shards):
    total = sum(len(pathlib.Path(name).read_bytes()) for name in shards)
    assert stream.is_large(shards, total - 1) and not stream.is_large(shards, total)


def test_too_little_text_gets_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    (tmp_path / "a.txt").write_text("a few\nlines\n")
    args = [f"--data={tmp_path}/a.txt", "--stream", f"--save={tmp_path}/m.keras"]
    code, _, err = in_process.run(binary, capsys, *args)
    assert code == tfps.exit_codes.FAILED
    assert "--data: the validation text has 0 tokens" in err
