"""BERT: how text is read and masked, the network, and its binary."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from models import streams, transformer, word_pieces
from models.bert import __main__ as binary, gaps, model as network, text
from tests.models import in_process

PIECES = [*word_pieces.SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcxyz"), "<"]
SIZE = transformer.Size(len(PIECES), 2, 16, 2, 12)


@pytest.fixture
def files(tmp_path):
    """Three files, one of them a page."""
    (tmp_path / "a.txt").write_bytes(b"a b\n\nc \xff d")
    (tmp_path / "b.txt").write_text("e f\n")
    page = "<html><head><title>z</title></head><p class='x\n'>g &lt; h</p>\n<p>i</p></html>"
    (tmp_path / "c.html").write_text(page)
    return sorted(str(path) for path in tmp_path.iterdir())


def read(windows):
    return [[PIECES[i] for i in window] for window in windows.as_numpy_iterator()]


def test_windows_hold_the_text_as_it_comes(files):
    (window,) = read(text.windows(streams.Part(files[:1], "all"), PIECES, 7, order=0))
    assert window == ["[CLS]", "a", "b", "c", "[UNK]", "d", "[SEP]"]
    (window,) = read(text.windows(streams.Part(files[2:], "all"), PIECES, 6, order=0))
    assert window == ["[CLS]", "g", "<", "h", "i", "[SEP]"]
    tokens = [w[1] for w in read(text.windows(streams.Part(files, "all"), PIECES, 3, order=0))]
    assert sorted(tokens) == sorted(["a", "b", "c", "[UNK]", "d", "e", "f", "g", "<", "h", "i"])


def test_too_little_text_gets_a_line(files):
    with pytest.raises(tfps.DataError, match="less than a window of --context=64 tokens"):
        text.held_out(streams.Part(files, "all"), PIECES, 64, 5)


def test_few_files_are_split_by_blocks_of_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{i}\n" for i in range(3000)))
    training, held = (
        {int(line) for line in streams.lines(part, order=0).as_numpy_iterator()}
        for part in streams.split([str(path)])
    )
    assert not training & held and training | held == set(range(3000))
    assert 100 < len(held) < 200  # One in twenty.


def test_many_files_are_held_out_whole():
    files = [f"folder/{i}.txt" for i in range(200)]
    training, held = streams.split(files)
    assert training.lines == held.lines == "all"
    assert sorted([*training.files, *held.files]) == sorted(files)
    assert 2 <= len(held.files) <= 25


def test_masks_are_those_of_bert():
    windows = np.full([400, 22], 5, np.int32)
    windows[:, 0], windows[:, -1] = 2, 3
    windows[:, 1:-1] += np.arange(20, dtype=np.int32)
    x, y = text.masked(tf.constant(windows), PIECES, tf.constant([0, 7], tf.int64))
    tokens, positions = x["tokens"].numpy(), x["positions"].numpy()
    assert positions.shape == y.shape == (400, 3)
    assert positions.min() == 1 and positions.max() == 20
    assert (np.diff(positions) > 0).all()
    np.testing.assert_array_equal(np.take_along_axis(windows, positions, 1), y)
    at = np.take_along_axis(tokens, positions, 1)
    np.put_along_axis(tokens, positions, y, 1)
    np.testing.assert_array_equal(tokens, windows)  # All else stays.
    mask = PIECES.index("[MASK]")
    assert np.mean(at == mask) == pytest.approx(0.8, abs=0.05)
    assert np.mean(at == y) == pytest.approx(0.1 + 0.1 / 32, abs=0.03)
    assert at[at != mask].min() >= 5
    again, _ = text.masked(tf.constant(windows), PIECES, tf.constant([0, 8], tf.int64))
    assert (again["positions"].numpy() != positions).any()


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 60])
def test_workers_share_the_text_and_read_it_again_alike(tmp_path, count):
    letters = np.random.default_rng(0).choice([*"abcdefghijklmnop"], [count, 600 // count])
    for i, its in enumerate(letters):
        (tmp_path / f"{i}.txt").write_text("\n" * 70 + "\n".join(its))
    part = streams.Part(sorted(str(path) for path in tmp_path.iterdir()), "all")

    def read(worker, seed=0):
        """Some windows of worker 0 or 1, with their masked tokens put back."""
        found = []
        for x, y in text.batches(part, PIECES, 7, 2, seed, tfps.Context(worker, 2)).take(30):
            tokens = x["tokens"].numpy()
            np.put_along_axis(tokens, x["positions"].numpy(), y.numpy(), 1)
            found += [tuple(window) for window in tokens]
        return found

    first, second = read(0), read(1)
    assert first == read(0) and first != read(0, seed=1)
    every = {tuple(w) for w in text.windows(part, PIECES, 7, 0).as_numpy_iterator()}
    assert len(every) == 120
    assert set(first) | set(second) <= every and not set(first) & set(second)


def test_the_network_ignores_padding_and_is_plain_keras(tmp_path):
    model = network.build(SIZE, 0.1)
    tokens = np.array([[2, 6, 7, 4, 8, 3]], np.int32)
    x = {"tokens": tokens, "positions": np.array([[3, 1]], np.int32)}
    logits = model(x).numpy()
    assert logits.shape == (1, 2, len(PIECES))
    padded = np.pad(tokens, [(0, 0), (0, 4)], constant_values=transformer.PADDING)
    np.testing.assert_allclose(model({**x, "tokens": padded}).numpy(), logits, atol=1e-5)
    swapped = model({**x, "positions": x["positions"][:, ::-1]}).numpy()
    np.testing.assert_allclose(swapped, logits[:, ::-1], atol=1e-6)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(x).numpy(), logits)
    assert transformer.size_of(loaded) == SIZE


def test_weights_of_the_encoder_go_to_another_model():
    one, other = network.build(SIZE, 0.0), network.build(SIZE, 0.0)
    x = {"tokens": np.array([[2, 6, 4, 3]]), "positions": np.array([[2]])}
    transformer.set_weights(other, transformer.weights(one))
    for name in ("masked", "masked_norm"):
        other.get_layer(name).set_weights(one.get_layer(name).get_weights())
    np.testing.assert_array_equal(other(x).numpy(), one(x).numpy())


def test_gaps_are_filled():
    model = network.build(SIZE, 0.0)
    guesses = gaps.fill(model, PIECES, ["a [MASK] b[MASK]", "c", "[MASK]"])
    assert [(g.line, g.gap) for g in guesses] == [(1, 1)] * 3 + [(1, 2)] * 3 + [(3, 1)] * 3
    x = {"tokens": np.array([[2, 5, 4, 6, 4, 3]]), "positions": np.array([[2, 4]])}
    best = model(x).numpy()[0].argmax(1)
    assert [guesses[0].piece, guesses[3].piece] == [PIECES[i] for i in best]
    with pytest.raises(tfps.DataError, match="line 1 has 13 tokens, more than the 12"):
        gaps.fill(model, PIECES, ["a b c d e f g h i j [MASK]"])


def test_it_learns_on_servers_and_fills_gaps(connect, capsys, tmp_path):
    # Most windows have one word only, so the other words of a window tell the masked ones.
    words = np.random.default_rng(0).integers(0, 8, 160)
    blocks = [f"{'abcdefgh'[i]}one " * 16 + "\n" for i in words]
    (tmp_path / "text.txt").write_text("".join(32 * block for block in blocks))
    save = tmp_path / "m.keras"
    in_process.train(
        binary, connect(workers=2), f"--data={tmp_path}/*.txt", f"--save={save}",
        f"--log_dir={tmp_path}/board", "--epochs=1", "--steps_per_epoch=200", "--context=18",
        "--layers=1", "--width=32", "--heads=2", "--learning_rate=0.003", "--warmup_steps=20",
        "--vocabulary=300", "--push=int8", "--batch_size=8",
    )  # fmt: skip
    assert "by always guessing the most frequent token" in capsys.readouterr().out
    held_out = json.loads((tmp_path / "m.json").read_text())["held_out"]
    assert held_out["accuracy"] > 3 * held_out["most_frequent"]
    (tmp_path / "gaps").write_text("cone [MASK] cone\n")
    code, out, err = in_process.run(binary, capsys, f"--save={save}", f"--predict={tmp_path}/gaps")
    assert code == 0, err
    head, first, *_ = [line.split("\t") for line in out.splitlines()]
    assert head == ["line", "gap", "piece", "probability"]
    assert first[:2] == ["1", "1"]


@pytest.mark.parametrize(
    ("args", "said", "expected"),
    [
        ([], "has no folder postgresql-doc-15 with *.html; run make data-bert", 1),
        (["--data={tmp}/none*"], "matches no file", 1),
        (["--data={tmp}/binary"], "is binary (a zero byte at offset 3)", 1),
        (["--width=10", "--heads=4"], "--width=10 is not a multiple of --heads=4", 2),
        (["--predict={tmp}/short.txt"], "m.keras does not exist", 2),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, args, said, expected):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    (tmp_path / "binary").write_bytes(b"abc\0def")
    (tmp_path / "short.txt").write_text("a few words\n" * 40)
    args = [f"--packages={tmp_path}", *(a.format(tmp=tmp_path) for a in args)]
    code, _, err = in_process.run(binary, capsys, f"--save={tmp_path}/m.keras", *args)
    assert code == expected
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
