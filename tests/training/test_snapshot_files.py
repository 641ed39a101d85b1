"""`python -m tfps.snapshot`: what is in a folder, and what plain Keras makes of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tests.conftest import mlp, regression
from tfps import snapshot


@pytest.fixture(scope="module")
def saved(connect, tmp_path_factory):
    """(folder, trainer) after 30 updates on one worker, of which a snapshot has 30."""
    folder = tmp_path_factory.mktemp("snapshots")
    model = mlp(batch_norm=True)
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    snapshots = tfps.Snapshots(folder, every=None, every_updates=12)
    trainer = tfps.Trainer(model, connect(workers=1, ps=2), snapshots=snapshots)
    trainer.fit(*regression(160), batch_size=16, epochs=3, shuffle=False, verbose=0)
    return folder, trainer


def said(capsys, *argv):
    code = snapshot.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out + err


def test_list_and_show(saved, capsys, tmp_path):
    folder, _ = saved
    code, listed = said(capsys, "list", folder)
    assert code == 0
    assert "snapshot-000001-000003" in listed and "epoch 3, batch 4, step 24" in listed
    assert "at the end of fit 1" in listed
    code, shown = said(capsys, "show", folder, "--snapshot=snapshot-000001-000003")
    assert code == 0
    assert "momentums, velocities" in shown and "[8, 16]" in shown and "batches" in shown
    assert said(capsys, "show", tmp_path)[0] == 2
    code, line = said(capsys, "show", folder, "--snapshot=other")
    assert code == 2 and "it has snapshot-000001-000004, snapshot-000001-000003" in line


def test_a_damaged_one_is_listed_as_such(saved, capsys, tmp_path):
    folder, _ = saved
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "snapshot-000001-000004.ps-1.index").unlink()
    listed = said(capsys, "list", tmp_path)[1]
    assert "snapshot-000001-000004   damaged: snapshot-000001-000004.ps-1.index" in listed
    code, _ = said(capsys, "show", tmp_path, "--snapshot=snapshot-000001-000004")
    assert code == 1
    assert "snapshot-000001-000003" in said(capsys, "show", tmp_path)[1]


def test_plain_keras_goes_on_with_what_is_exported(saved, capsys, tmp_path):
    folder, trainer = saved
    expected, x, y = trainer.model, *regression(160)
    for name in ("m.keras", "m.weights.h5", "checkpoint"):
        code, line = said(capsys, "export", folder, f"--output={tmp_path / name}")
        assert code == 0 and "is exported to" in line, line
    loaded = keras.models.load_model(tmp_path / "m.keras")
    others = mlp(batch_norm=True), mlp(batch_norm=True)
    others[0].load_weights(tmp_path / "m.weights.h5")
    others[1].compile(keras.optimizers.Adam(0.01), "mse")
    others[1].optimizer.build(others[1].trainable_variables)
    checkpoint = tf.train.Checkpoint(model=others[1], optimizer=others[1].optimizer)
    checkpoint.read(str(tmp_path / "checkpoint")).assert_consumed()
    for one in (loaded, *others):
        for a, b in zip(one.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    for one in (loaded, others[1]):
        assert one.optimizer.iterations == 30
        for a, b in zip(one.optimizer.variables, expected.optimizer.variables, strict=True):
            np.testing.assert_array_equal(a, b)
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(expected.evaluate(x, y, verbose=0))


def test_a_model_of_own_classes_cannot_be_exported_by_the_command(connect, tmp_path, capsys):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model.compile("sgd", "mse", jit_compile=False)
    trainer = tfps.Trainer(model, connect(workers=1, ps=1), snapshots=tmp_path)
    trainer.fit(*regression(32), verbose=0)
    code, line = said(capsys, "export", tmp_path, f"--output={tmp_path / 'm.keras'}")
    assert code == 2 and "load the snapshot with the program that wrote it" in line
