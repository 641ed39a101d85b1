"""The chief of tfps. Each setting has its own Trainer on one strategy, kept between turns."""

import functools
import json

import tensorflow as tf

import tfps
from benchmarks import fit_clock
from benchmarks.wire import data, lines, model_keras
from benchmarks.wire.sizes import WORKERS

STARTUP_TIMEOUT = 180.0  # s; the servers' processes may still be importing TensorFlow


@functools.cache
def connected() -> tfps.ParameterServerStrategy:
    return tfps.ParameterServerStrategy(
        tfps.Cluster.from_env(),
        variable_partitioner=tfps.partitioners.Balanced(),
        startup_timeout=STARTUP_TIMEOUT,
    )


@functools.cache
def trainer(settings: str) -> tfps.Trainer:
    settings = json.loads(settings)
    strategy = connected()
    return tfps.Trainer(
        model_keras.keras3(settings["xla"], settings.get("computes", True)),
        strategy,
        tfps.consistency.parse(settings.get("consistency", "async")),
        push=tfps.compression.parse(settings["push"]),
        pull=tfps.compression.parse(settings["pull"]),
        overlap=settings["overlap"],
        sparse_updates=settings["sparse_updates"],
    )


def dataset_fn(context) -> tf.data.Dataset:
    return data.dataset(context.worker_index)


def handle(message: dict) -> dict:
    """Calls `fit` once, with the steps of an overlap or of an exchange around what is timed."""
    turn = trainer(json.dumps(message["settings"]))
    stride = message["stride"]
    around = stride if stride > 1 else message["settings"]["overlap"]
    timed = fit_clock.timed(functools.partial(turn.fit, dataset_fn), message, WORKERS, around)
    return {
        **timed,
        "parameters": turn.model.count_params(),
        "predicted_up": turn.stats["push_bytes_per_step"][-1],
        "predicted_down": turn.stats["pull_bytes_per_step"][-1],
    }


if __name__ == "__main__":
    lines.serve(handle)
