"""Parts of a profile, measured on an embedded cluster: what is counted is as training counts it."""

import os
import pathlib
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests import warm
from tests.conftest import regression
from tfps.profiling import arithmetic, clock, codec_costs
from tfps.training import profile_run


def test_processor_time_is_that_of_the_call():
    def burn():
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    burnt = clock.timed(burn, 0.05)
    assert 0.009 < burnt.seconds < 0.03 and burnt.threads >= 1
    assert clock.timed(lambda: time.sleep(0.01), 0.05).seconds < 0.005
    with pytest.raises(tfps.ConfigError, match="processor time of process 999999999"):
        clock.of_processes([999999999])


def test_a_model_with_a_table(connect):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input([3], dtype="int32"),
            keras.layers.Embedding(50, 16),
            keras.layers.Flatten(),
            keras.layers.Dense(64),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", "mse", jit_compile=False)
    strategy = connect(1, 1)
    x = np.arange(12, dtype=np.int32).reshape(4, 3)
    y = np.ones((4, 1), np.float32)
    expected = {}
    for name in ("identity", "int8"):
        codec = tfps.compression.parse(name)
        trainer = tfps.Trainer(model, strategy, push=codec, pull=codec)
        trainer.fit(x, y, batch_size=4, verbose=0)
        expected[name] = [trainer.stats[f"{way}_bytes_per_step"][-1] for way in ("push", "pull")]
    session = trainer._session
    served = session.served
    (side,) = session.state.sides_in_use().values()
    found = arithmetic.gradients(
        served.puller,
        side.pusher,
        served.optimizer,
        served.program,
        (tf.constant(x), tf.constant(y)),
        0.0,
    )
    plan = served.store.plan
    (table,) = plan.tables
    assert found.rows == {table: 12}
    assert found.timing.seconds > 0 and served.program.devices.host.startswith("/job:worker")
    for name, (up, down) in expected.items():
        push = codec_costs.cost(plan, name, False, found.rows, 0.0)
        pull = codec_costs.cost(plan, name, True, found.rows, 0.0)
        dense = [i for i in range(len(plan.buckets)) if i not in plan.of_tables]
        pushed = [i for i in dense if plan.buckets[i].kind.treatment.pushed]
        assert sum(push.bytes[i] for i in pushed) + push.row_bytes == up
        assert sum(pull.bytes[i] for i in dense) + pull.row_bytes == down
        assert bool(push.encode) == bool(push.state) == (name == "int8")
        assert pull.state == 0
    assert arithmetic.update(served.store, served.optimizer, False, 0.0) > 0


def test_it_wants_processes_of_its_own(connect):
    model = keras.Sequential([keras.Input([8]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    trainer = tfps.Trainer(model, connect(1, 1))
    with pytest.raises(tfps.ConfigError, match="LocalCluster\\(workers=1, ps=1, processes=True\\)"):
        trainer.profile(*regression(), batch_size=32)


def test_input_without_an_end():
    x, y = regression(10)
    data, batch = profile_run.endless(x, y, 4)
    assert [t.shape[0] for t in batch] == [4, 4]
    assert sum(1 for _ in data.take(7)) == 7
    made, batch = profile_run.endless(lambda context: tf.data.Dataset.range(3).batch(3), None, None)
    assert sum(1 for _ in made(tfps.Context(0, 1)).take(5)) == 5
    with pytest.raises(tfps.DataError, match="neither y nor batch_size"):
        profile_run.endless(data, None, 4)
    with pytest.raises(tfps.DataError, match="it has none"):
        profile_run.endless(tf.data.Dataset.range(0), None, None)
    with pytest.raises(tfps.DataError, match="not on object"):
        profile_run.endless(object(), None, None)


PROGRAM = """
import keras, numpy as np, tfps
with tfps.LocalCluster(1, 1, processes=True) as cluster:
    strategy = tfps.ParameterServerStrategy(cluster, startup_timeout=90)
    model = keras.Sequential([keras.Input([64]), keras.layers.Dense(64), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    trainer = tfps.Trainer(model, strategy)
    x = np.ones((40, 64), "float32")
    profile = trainer.profile(x, x[:, :1], batch_size=8, seconds=1.0, codecs=["int8"])
profile.write("profile.json")
plan = tfps.plan("profile.json", workers=4, ps=2, bandwidth="10mbit")
print(plan.reason)
"""


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_a_profile_is_measured_and_planned_with(tmp_path):
    root = pathlib.Path(tfps.__file__).parent.parent
    environ = {**os.environ, "PYTHONPATH": str(root)}
    done = warm.run(["-c", PROGRAM], tmp_path, environ, tmp_path)
    assert done.returncode == 0, done.stderr
    profile = tfps.Profile.read(tmp_path / "profile.json")
    assert set(profile.push) == set(profile.pull) == {"identity", "int8"}
    assert profile.examples == 8 and profile.steps_per_call == 1
    assert profile.parameters == 4 * (64 * 64 + 64 + 64 + 1)
    assert profile.slots == pytest.approx(2, rel=0.01)
    assert profile.dispatch.call > 0 and profile.dispatch.batch_bytes == 8 * 65 * 4
    assert profile.transport.send > 0 and profile.transport.receive > 0
    assert profile.compute > 0 and profile.update > 0
