"""Trains an embedding table that is never whole on any machine.

Run it with `python examples/large_embedding.py`.
"""

import keras
import numpy as np

import tfps

WORDS, WIDTH, BATCH = 200_000, 16, 64


def main() -> None:
    rng = np.random.default_rng(0)
    # Three ids in an example; a few words are frequent and most are rare, as in text.
    ids = np.minimum(rng.zipf(1.3, size=(2048, 3)), WORDS) - 1
    labels = (ids.min(axis=1, keepdims=True) % 2).astype("float32")

    keras.utils.set_random_seed(0)
    strategy = tfps.ParameterServerStrategy(
        tfps.LocalCluster(workers=2, ps=2),
        tfps.partitioners.Balanced(),  # Splits the table by rows between the two servers.
        # The default is 256 MiB: a larger variable made in the scope is never on the chief.
        max_chief_bytes=1 << 20,
    )
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input([3], dtype="int32"),
                keras.layers.Embedding(WORDS, WIDTH, name="table"),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(1),
            ]
        )
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adagrad(0.1), loss=loss)

    # "lazy": only the rows that a batch looks up are updated. A step then costs by the batch.
    trainer = tfps.Trainer(model, strategy, sparse_updates="lazy")
    history = trainer.fit(ids, labels, batch_size=BATCH, epochs=3, verbose=0).history

    print(strategy.placement())
    print(f"the table has {WORDS * WIDTH * 4:,} bytes")
    print(f"a step pulls  {trainer.stats['pull_bytes_per_step'][-1]:,.0f} bytes")
    print(f"a step pushes {trainer.stats['push_bytes_per_step'][-1]:,.0f} bytes")
    print("loss of each epoch: " + ", ".join(f"{loss:.3f}" for loss in history["loss"]))


if __name__ == "__main__":
    main()
