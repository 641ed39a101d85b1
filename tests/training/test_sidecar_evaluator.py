"""`SidecarEvaluator` on folders of snapshots: what it finds, exports, shows, and when it ends."""

import functools
import json
import pathlib
import shutil
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression

UNSEEN = 64
BY_UPDATES = functools.partial(tfps.Snapshots, every=None, every_updates=4)


def compiled(metrics=("mae",)):
    model = mlp(batch_norm=True)
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=list(metrics), jit_compile=False)
    return model


def unseen():
    x, y = regression(320 + UNSEEN)
    return x[320:], y[320:]


def train(strategy, folder, epochs=3, **fit):
    trainer = tfps.Trainer(compiled(), strategy, snapshots=BY_UPDATES(folder))
    trainer.fit(*regression(320), batch_size=32, epochs=epochs, verbose=0, **fit)
    return trainer.model


@pytest.fixture(scope="module")
def job(connect, tmp_path_factory):
    """(folder, model) of a job that has ended after 30 batches, and took a snapshot before."""
    folder = tmp_path_factory.mktemp("job")
    return folder, train(connect(workers=1, ps=2), folder)


@pytest.fixture
def saved(job, tmp_path):
    """A copy of the folder, in which a test may do what it likes."""
    return pathlib.Path(shutil.copytree(job[0], tmp_path / "saved"))


class Beside(keras.callbacks.Callback):
    """Evaluates beside training; each of the first two epochs waits for an evaluation."""

    def __init__(self, evaluator):
        super().__init__()
        self.thread = threading.Thread(target=evaluator.start)
        self._evaluator, self._begun = evaluator, False

    def on_epoch_begin(self, epoch, logs=None):
        if not self._begun:
            self._begun = True
            self.thread.start()

    def on_epoch_end(self, epoch, logs=None):
        waited = threading.Event()
        while self.thread.is_alive() and len(self._evaluator.evaluations) <= min(epoch, 1):
            waited.wait(0.02)


def test_it_evaluates_as_plain_keras_and_exports_the_best(job, saved):
    trained = job[1]
    evaluator = tfps.SidecarEvaluator(compiled(), unseen(), saved, timeout=5.0)
    (one,) = evaluator.start()
    expected = trained.evaluate(*unseen(), verbose=0, return_dict=True)
    assert one.logs == pytest.approx(expected, rel=1e-6)
    assert (one.fit, one.epoch, one.step) == (1, 3, 30)
    best = keras.models.load_model(saved / "evaluator" / "best.keras")
    assert best.evaluate(*unseen(), verbose=0, return_dict=True) == pytest.approx(expected)
    assert best.optimizer.iterations == 30
    for a, b in zip(best.optimizer.variables, trained.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    # TensorBoard's x axis is the job's.
    (events,) = (saved / "evaluator" / "board").iterdir()
    shown = {
        (value.tag, event.step)
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    }
    assert shown == {("evaluation_loss", 30), ("evaluation_mae", 30)}


def test_it_follows_a_job_and_ends_it_by_early_stopping(connect, tmp_path, capsys):
    evaluator = tfps.SidecarEvaluator(
        compiled(), unseen(), tmp_path, early_stopping=1, min_delta=1e9, timeout=60.0, export=False
    )
    evaluator._follower._poll = 0.01
    beside = Beside(evaluator)
    model = train(connect(workers=1, ps=2), tmp_path, epochs=2000, callbacks=[beside])
    beside.thread.join(60)
    assert not beside.thread.is_alive()
    assert 1 <= len(model.history.epoch) < 2000
    steps = [e.step for e in evaluator.evaluations]
    assert len(steps) >= 2 and steps == sorted(steps)
    said = capsys.readouterr().err
    assert "snapshots: training ends, as the evaluator asks: 1 evaluations have not beaten" in said
    assert f"the job has ended; the best loss is {evaluator.best.logs['loss']:.6g}" in said
    # What was asked of one job is not asked of the next one in the same folder.
    again = train(connect(workers=1, ps=2), tmp_path, epochs=2)
    assert len(again.history.epoch) == 2


def test_a_job_that_does_not_come_or_dies_is_one_line(saved, tmp_path):
    nothing = BY_UPDATES(tmp_path / "none")
    evaluator = tfps.SidecarEvaluator(compiled(), unseen(), nothing, timeout=0.1)
    with pytest.raises(tfps.StartupTimeout, match=r"no new snapshot came to .* within 0.1 s") as e:
        evaluator.start()
    assert tfps.exit_codes.of(e.value) == 75
    *_, newest = sorted(saved.glob("snapshot-*.json"))
    manifest = newest.read_bytes()
    newest.unlink()
    evaluator = tfps.SidecarEvaluator(compiled(), unseen(), BY_UPDATES(saved), timeout=0.1)
    with pytest.raises(tfps.ChiefLost, match="nothing has followed snapshot-") as e:
        evaluator.start()
    assert tfps.exit_codes.of(e.value) == 75
    (one,) = evaluator.evaluations
    # It is started again, and the job goes on.
    newest.write_bytes(manifest)
    evaluator = tfps.SidecarEvaluator(compiled(), unseen(), BY_UPDATES(saved), timeout=0.1)
    first, last = evaluator.start()
    assert first == one and one.step < last.step == 30
    assert evaluator.best == min(first, last, key=lambda e: e.logs["loss"])
    assert evaluator.model.evaluate(*unseen(), verbose=0)[0] == pytest.approx(
        evaluator.best.logs["loss"], rel=1e-6
    )


@pytest.mark.parametrize("before", ["first", "last", "of another job"])
def test_an_evaluator_that_was_killed_goes_on_with_a_metric_that_grows(saved, before):
    """Which way a metric gets better is known once it was made; the model is not built yet."""
    evaluator = functools.partial(
        tfps.SidecarEvaluator,
        data=unseen(),
        snapshots=BY_UPDATES(saved),
        monitor="r2_score",
        timeout=0.1,
    )
    unbuilt = lambda: compiled([keras.metrics.R2Score()])  # noqa: E731
    (last,) = evaluator(unbuilt()).start()
    path = saved / "evaluator" / "evaluations.json"
    record = json.loads(path.read_text())
    record.pop("has_ended", None)  # Its last act, to which none of these came.
    (one,) = record["evaluations"]
    logs = {"loss": 1.0, "mae": 1.0, "r2_score": 2.0}
    (*_, first) = sorted(saved.glob("snapshot-*.json"), reverse=True)
    id = [int(n) for n in first.stem.split("-")[1:]]
    if before == "last":
        record["evaluations"] = [[id, *one[1:4], {**logs, "r2_score": -9.0}], one]
    else:
        record["evaluations"] = [[id, *one[1:4], logs]]
    record["job"] += before == "of another job"
    path.write_text(json.dumps(record))
    again = evaluator(unbuilt())
    found = again.start()
    assert len(found) == (1 if before == "of another job" else 2) and found[-1] == last
    assert again.best == (found[0] if before == "first" else last)
    if before == "last":
        assert again.model.evaluate(*unseen(), verbose=0, return_dict=True) == pytest.approx(
            last.logs, rel=1e-6
        )
        assert again.model.optimizer.iterations == 30
    # Whoever comes after an evaluator that was done waits for another job.
    with pytest.raises(tfps.StartupTimeout):
        evaluator(unbuilt()).start()


def test_a_snapshot_that_is_deleted_or_damaged_is_passed_over(saved, capsys):
    newest, older = sorted(saved.glob("snapshot-*.json"), reverse=True)
    part = pathlib.Path(str(newest).replace(".json", ".ps-0.data-00000-of-00001"))
    part.write_bytes(bytes(len(part.read_bytes())))
    evaluator = tfps.SidecarEvaluator(compiled(), unseen(), BY_UPDATES(saved), timeout=0.0)
    assert evaluator.start() == []
    assert f"snapshots: {newest.stem} is passed over" in capsys.readouterr().err
    part.unlink()  # As housekeeping does, after the manifest.
    newest.unlink()
    evaluator = tfps.SidecarEvaluator(compiled(), unseen(), BY_UPDATES(saved), timeout=0.0)
    with pytest.raises(tfps.ChiefLost):
        evaluator.start()
    (one,) = evaluator.evaluations
    assert str(one.snapshot) == older.stem
    assert "passed over" not in capsys.readouterr().err


def test_it_builds_a_model_and_finds_variables_by_their_paths(connect, tmp_path):
    """The model is not built, and the data is a `dataset_fn`."""

    def make():
        keras.utils.set_random_seed(3)
        layers = [keras.layers.Dense(4), keras.layers.Dense(1, use_bias=False)]
        model = keras.Sequential(layers, name="own")
        model.compile("adam", "mse", jit_compile=False)
        return model

    trainer = tfps.Trainer(make(), connect(workers=1, ps=2), snapshots=tmp_path)
    keras.backend.clear_session()
    trainer.fit(*regression(320), verbose=0)
    keras.backend.clear_session()
    data = lambda context: tf.data.Dataset.from_tensor_slices(unseen()).batch(16)  # noqa: E731
    (one,) = tfps.SidecarEvaluator(make(), data, tmp_path, timeout=5.0).start()
    expected = trainer.model.evaluate(*unseen(), verbose=0, return_dict=True)
    assert one.logs == pytest.approx(expected, rel=1e-6)
    other = mlp()
    other.compile("adam", "mse")
    with pytest.raises(tfps.ConfigError, match="use the model of the program that wrote it"):
        tfps.SidecarEvaluator(other, unseen(), tmp_path, directory=tmp_path / "o").start()


def test_arguments_are_checked(tmp_path):
    model = compiled()
    for arguments, message in (
        ({"early_stopping": 0}, "early_stopping=0"),
        ({"fits": None}, "fits=None"),
        ({"mode": "up"}, "mode='up'"),
        ({"timeout": -1}, "timeout=-1"),
    ):
        with pytest.raises(tfps.ConfigError, match=message):
            tfps.SidecarEvaluator(model, unseen(), tmp_path, **arguments)
    for data in (None, (i for i in [1])):
        with pytest.raises(tfps.ConfigError, match="data"):
            tfps.SidecarEvaluator(model, data, tmp_path)
