"""Flags of what crosses the network, and the placement that a run shows."""

import glob

import keras
import pytest
from absl.testing import flagsaver
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tfps
from models import network
from tests.conftest import mlp, regression

network.FLAGS.mark_as_parsed()


def test_flags_become_arguments():
    flags = {"push": "topk:0.01", "pull": "bfloat16", "push_warmup": 9, "overlap": 2}
    with flagsaver.flagsaver(**flags, sparse_updates="lazy", consistency="bounded:2"):
        assert network.arguments() == {
            "push": tfps.compression.TopK(0.01),
            "pull": tfps.compression.BFloat16(),
            "consistency": tfps.BoundedStaleness(2),
            "push_warmup": 9,
            "overlap": 2,
            "sparse_updates": "lazy",
            "devices_per_worker": None,
            "min_workers": 1,
            "task_timeout": 300.0,
            "on_lost_ps": "wait",
            "spare": [],
            "ledger": None,
        }
    with flagsaver.flagsaver(network="auto"):
        arguments = network.arguments()
        assert arguments["push"] == arguments["pull"] == tfps.compression.Auto()
    with flagsaver.flagsaver(min_workers=2, task_timeout=9.0, partitioner="balanced"):
        assert isinstance(network.partitioner(), tfps.partitioners.Balanced)
        arguments = network.arguments()
        assert (arguments["min_workers"], arguments["task_timeout"]) == (2, 9.0)
    assert network.partitioner() is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"push": "zip"}, r"^--push: codec 'zip' is unknown.*topk:ratio"),
        ({"push": "topk:7"}, r"^--push: .*ratio=7.*topk:ratio"),
        ({"consistency": "bounded"}, r"^--consistency: consistency 'bounded' .*bounded:bound,"),
        ({"consistency": "sync:-1"}, r"^--consistency: .*backups=-1.*sync:backups=0"),
        ({"pull": "onebit"}, r"^--pull=onebit does not work for parameters: .*difference:onebit$"),
        ({"push": "difference:onebit"}, r"^--push=difference:onebit does not .* for --pull$"),
        ({"network": "auto", "push": "int8"}, r"^--network=auto chooses what --push names"),
    ],
)
def test_a_bad_flag_is_one_line(flags, message):
    with flagsaver.flagsaver(**flags), pytest.raises(tfps.ConfigError, match=message) as e:
        network.arguments()
    assert "\n" not in str(e.value)


def test_placement_is_shown(connect, tmp_path, capsys):
    strategy = connect(partitioner=tfps.partitioners.Balanced())
    assert not strategy.placement().rows
    model = mlp(units=64)
    model.compile(keras.optimizers.Adam(), "mse")
    x, y = regression()
    log_dir = str(tmp_path)
    trainer = tfps.Trainer(model, strategy)
    trainer.fit(x, y, callbacks=[network.ShowPlacement(strategy, log_dir)], verbose=0)
    out = capsys.readouterr().out
    for v in model.trainable_variables:
        assert v.path in out
    assert "fullest/mean 1.0" in out
    accumulator = EventAccumulator(glob.glob(f"{log_dir}/*")[0])
    accumulator.Reload()
    (event,) = accumulator.Tensors("placement")
    assert b"| ps |" in event.tensor_proto.string_val[0]
    text = network.traffic(trainer)
    assert text.startswith("a worker's step sends 2.6 kB and receives 2.6 kB; staleness 0.0")


def test_schedules_count_updates():
    assert network.updates(100, workers=4) == 100
    for setting in ("sync", "local:8"):
        with flagsaver.flagsaver(consistency=setting):
            assert network.updates(100, workers=4) == 25
