"""Trains an embedding of ids that nobody has numbered, and that keep coming.

Run it with `python examples/hash_embedding.py`.
"""

import keras
import numpy as np

import tfps

DAYS, USERS, NEW = 3, 500, 200


def main() -> None:
    rng = np.random.default_rng(0)
    users = rng.integers(0, 2**62, USERS + DAYS * NEW)  # Ids as a hash or a database gives them.
    tastes = rng.integers(0, 2, len(users)).astype("float32")

    keras.utils.set_random_seed(0)
    ids = keras.Input([1], dtype="int64")
    row = keras.layers.Flatten()(tfps.layers.HashEmbedding(8, expected=1000, name="users")(ids))
    model = keras.Model(ids, keras.layers.Dense(1)(row))
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adagrad(1.0), loss=loss, metrics=["accuracy"])

    strategy = tfps.ParameterServerStrategy(tfps.LocalCluster(workers=2, ps=2))
    trainer = tfps.Trainer(model, strategy)
    for day in range(DAYS):
        known = USERS + day * NEW
        seen = rng.integers(0, known, 4096)
        trainer.fit(users[seen, None], tastes[seen, None], batch_size=128, epochs=2, verbose=0)
        held = model.get_layer("users").local.keys().keys
        _, accuracy = trainer.evaluate(users[:known, None], tastes[:known, None], verbose=0)
        print(f"day {day + 1}: {len(held)} of {known} users have a row, accuracy {accuracy:.2f}")
    _, accuracy = trainer.evaluate(users[known:, None], tastes[known:, None], verbose=0)
    print(f"users without a row: accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
