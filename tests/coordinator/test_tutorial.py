"""Programs in the manner of TensorFlow's parameter-server tutorial, on ours.

https://www.tensorflow.org/tutorials/distribute/parameter_server_training: only
the classes of the strategy and the coordinator are tfps's.
"""

import random

import numpy as np
import pytest
import tensorflow as tf

import tfps

tf_keras = pytest.importorskip("tf_keras")

PARTITIONER = tf.distribute.experimental.partitioners.MinSizePartitioner(
    min_shard_bytes=64, max_shards=2
)
FEATURES = ["Avenger", "Ironman", "Batman", "Hulk", "Spiderman", "Kingkong", "Wonder_Woman"]
LABELS = ["yes", "no"]


def linear_data(context):
    """y = 10 x, sharded as the tutorial does it."""
    x = tf.random.uniform((64, 1), seed=1)
    return (
        tf.data.Dataset.from_tensor_slices((x, 10 * x))
        .shard(context.num_input_pipelines, context.input_pipeline_id)
        .shuffle(64)
        .repeat()
        .batch(context.get_per_replica_batch_size(16))
        .prefetch(2)
    )


def linear_model(strategy, **compiled):
    with strategy.scope():
        tf_keras.utils.set_random_seed(0)
        model = tf_keras.models.Sequential([tf_keras.layers.Dense(1)])
        model.compile(tf_keras.optimizers.legacy.SGD(0.3), loss="mse", **compiled)
    return model


@pytest.mark.parametrize("steps_per_execution", [pytest.param(1, marks=pytest.mark.soak), 5])
def test_fit_with_a_dataset_creator(connect, steps_per_execution, tmp_path):
    strategy = connect(workers=2, partitioner=PARTITIONER)
    model = linear_model(
        strategy, steps_per_execution=steps_per_execution, metrics=["mean_absolute_error"]
    )
    creator = tf_keras.utils.experimental.DatasetCreator(linear_data)
    seen = []
    history = model.fit(
        creator,
        epochs=3,
        steps_per_epoch=20,
        verbose=0,
        validation_data=tf_keras.utils.experimental.DatasetCreator(linear_data),
        validation_steps=4,
        callbacks=[
            tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs)),
            tf_keras.callbacks.ModelCheckpoint(str(tmp_path / "best"), save_weights_only=True),
        ],
    )
    assert type(model._cluster_coordinator) is tfps.ClusterCoordinator
    losses = history.history["loss"]
    assert losses[-1] < losses[0] / 10
    assert history.history["val_loss"][-1] < 0.5
    assert "val_mean_absolute_error" in seen[0]
    assert model.optimizer.iterations.numpy() == 60
    assert any("best" in p.name for p in tmp_path.iterdir())


def test_fit_with_a_dataset_and_exact_evaluation(connect):
    strategy = connect(workers=2)
    x = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    dataset = tf.data.Dataset.from_tensor_slices((x, 10 * x)).shuffle(256, seed=1).batch(16)
    model = linear_model(strategy, pss_evaluation_shards=4, metrics=["mean_absolute_error"])
    model.fit(dataset.repeat(), epochs=3, steps_per_epoch=16, verbose=0)
    found = model.evaluate(dataset, verbose=0, return_dict=True)
    # Every example is counted once, as with one process.
    local = np.abs(np.asarray(model.get_weights()[0]) * x + model.get_weights()[1] - 10 * x)
    np.testing.assert_allclose(found["mean_absolute_error"], local.mean(), rtol=1e-4)


def test_a_custom_training_loop(connect):
    strategy = connect(workers=2, partitioner=PARTITIONER)
    rng = random.Random(0)

    # Preprocessing layers, made in the scope, so that their tables are on every worker.
    with strategy.scope():
        feature_lookup = tf_keras.layers.StringLookup(
            vocabulary=FEATURES, mask_token=None, num_oov_indices=0
        )
        label_lookup = tf_keras.layers.StringLookup(
            vocabulary=LABELS, mask_token=None, num_oov_indices=0
        )
        raw_features = tf_keras.layers.Input((3,), dtype=tf.string, name="feature")
        feature_stage = tf_keras.Model({"features": raw_features}, feature_lookup(raw_features))
        raw_label = tf_keras.layers.Input((1,), dtype=tf.string, name="label")
        label_stage = tf_keras.Model({"label": raw_label}, label_lookup(raw_label))

    def examples(count):
        for _ in range(count):
            features = rng.sample(FEATURES, 3)
            yield {"features": features}, ["yes"] if "Avenger" in features else ["no"]

    raw = list(examples(200))
    texts = tf.constant([x["features"] for x, _ in raw])
    answers = tf.constant([y for _, y in raw])

    def dataset_fn(_):
        dataset = tf.data.Dataset.from_tensor_slices(({"features": texts}, answers))
        dataset = dataset.shuffle(200).batch(32, drop_remainder=True)
        return dataset.map(
            lambda x, y: (feature_stage(x), label_stage({"label": y})[..., 0])
        ).repeat()

    with strategy.scope():
        tf_keras.utils.set_random_seed(0)
        inputs = tf_keras.layers.Input((3,), dtype=tf.int64, name="model_input")
        embedding = tf_keras.layers.Embedding(len(FEATURES), 16)
        hidden = tf.reduce_mean(embedding(inputs), axis=1)
        model = tf_keras.Model(inputs, tf_keras.layers.Dense(1, activation="sigmoid")(hidden))
        optimizer = tf_keras.optimizers.legacy.RMSprop(0.1)
        accuracy = tf_keras.metrics.Accuracy()
    assert len(embedding.weights) == 2
    assert embedding.weights[0].device == "/job:ps/replica:0/task:0/device:CPU:0"
    assert embedding.weights[1].device == "/job:ps/replica:0/task:1/device:CPU:0"

    @tf.function
    def step_fn(iterator):
        def replica_fn(features, labels):
            with tf.GradientTape() as tape:
                prediction = model(features, training=True)
                per_example = tf_keras.losses.BinaryCrossentropy(
                    reduction=tf_keras.losses.Reduction.NONE
                )(labels[:, None], prediction)
                loss = tf.nn.compute_average_loss(per_example)
                gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            accuracy.update_state(labels, tf.cast(tf.greater(prediction[:, 0], 0.5), tf.int64))
            return loss

        features, labels = next(iterator)
        losses = strategy.run(replica_fn, args=(features, labels))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    coordinator = tfps.ClusterCoordinator(strategy)

    @tf.function
    def per_worker_dataset_fn():
        return strategy.distribute_datasets_from_function(dataset_fn)

    per_worker_dataset = coordinator.create_per_worker_dataset(per_worker_dataset_fn)
    per_worker_iterator = iter(per_worker_dataset)
    for _ in range(6):
        accuracy.reset_states()
        for _ in range(10):
            coordinator.schedule(step_fn, args=(per_worker_iterator,))
        coordinator.join()
        if accuracy.result().numpy() > 0.99:
            break
    assert accuracy.result().numpy() > 0.95
    loss = coordinator.schedule(step_fn, args=(per_worker_iterator,))
    assert loss.fetch() < 0.3
    assert step_fn.experimental_get_tracing_count() <= 2

    # Evaluation by the coordinator.
    with strategy.scope():
        counted = tf_keras.metrics.Accuracy()

    @tf.function
    def eval_fn(iterator):
        def replica_fn(features, labels):
            prediction = model(features, training=False)
            counted.update_state(labels, tf.cast(tf.greater(prediction[:, 0], 0.5), tf.int64))

        features, labels = next(iterator)
        strategy.run(replica_fn, args=(features, labels))

    eval_iterator = iter(
        coordinator.create_per_worker_dataset(
            lambda: strategy.distribute_datasets_from_function(dataset_fn)
        )
    )
    for _ in range(6):
        coordinator.schedule(eval_fn, args=(eval_iterator,))
    coordinator.join()
    assert counted.result().numpy() > 0.95
