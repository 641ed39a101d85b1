"""Parts on the servers' own hosts, with copies on others: a host may vanish."""

import os

import keras
import numpy as np
import pytest

import tfps
from tests.training.test_going_back import Lose, losing  # noqa: F401  (a fixture)
from tests.training.test_snapshots import assert_equal, killed, trainer_on
from tests.training.test_training_state import data

SERVERS = 3


def of_host(folder, ps):
    """The files of the host of a ps; here all hosts have one folder."""
    names = sorted(os.listdir(folder))
    own = [n for n in names if f".ps-{ps}." in n and ".on-" not in n]
    return [folder / n for n in [*own, *(n for n in names if f".on-{ps}." in n)]]


@pytest.fixture
def broken_off(connect, tmp_path):
    """A trainer whose `fit` was cut off, and the weights that it would have ended with."""
    whole = trainer_on(connect, "async", 1, tmp_path / "whole", ps=SERVERS)
    whole.fit(data(), epochs=3, verbose=0)
    cut = trainer_on(connect, "async", 1, tmp_path / "cut", ps=SERVERS, copies=2)
    killed(cut, data(), epochs=3, at=(1, 5))
    return whole, tmp_path / "cut"


@pytest.mark.parametrize("vanished", [[], [1]])
def test_a_part_is_on_two_hosts(connect, broken_off, vanished):
    whole, folder = broken_off
    for ps in range(SERVERS):
        # Of two snapshots that are kept and one that is not: a part and a copy, of two files each.
        assert len(of_host(folder, ps)) == 3 * 2 * 2
    for ps in vanished:
        for path in of_host(folder, ps):
            path.unlink()
    again = trainer_on(connect, "async", 2, folder, ps=SERVERS, copies=2)
    again.fit(data(), epochs=3, verbose=0)
    assert_equal(again, whole)


def test_a_part_that_was_altered_is_not_used(connect, broken_off, capfd):
    whole, folder = broken_off
    altered = [p for p in of_host(folder, 2) if ".data" in p.name and ".on-" not in p.name]
    for path in altered:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    again = trainer_on(connect, "async", 2, folder, ps=SERVERS, copies=2)
    again.fit(data(), epochs=3, verbose=0)
    assert_equal(again, whole)
    # Both copies: the snapshot before is used, or none.
    fresh = folder.parent / "fresh"
    cut = trainer_on(connect, "async", 1, fresh, ps=SERVERS, copies=2)
    killed(cut, data(), epochs=3, at=(1, 5))
    for ps in range(SERVERS):
        for path in of_host(fresh, ps):
            path.write_bytes(b"")
    with pytest.raises(tfps.SnapshotDamaged, match="none of the 2 snapshots"):
        trainer_on(connect, "async", 2, fresh, ps=SERVERS, copies=2).fit(data(), verbose=0)
    assert "is not whole on the host of ps 0 or ps 1" in capfd.readouterr().err


def test_another_number_of_servers(connect, broken_off):
    whole, folder = broken_off
    again = trainer_on(connect, "async", 2, folder, ps=2, copies=2)
    again.fit(data(), epochs=3, verbose=0)
    for a, b in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_lost_server_finds_its_part_on_another_host(connect, tmp_path, losing):  # noqa: F811
    whole = trainer_on(connect, "async", 1, tmp_path / "whole")
    whole.fit(data(), epochs=3, verbose=0)
    folder = tmp_path / "cut"
    cut = trainer_on(connect, "async", 1, folder, copies=2)

    class Vanish(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if lose.epoch == 1 and batch == 7:
                cut._snapshotter.wait()
                for path in of_host(folder, 1):
                    path.unlink()

    lose = Lose(cut, 1, 7, [1])
    cut.fit(data(), epochs=3, verbose=0, callbacks=[Vanish(), lose])
    assert_equal(cut, whole)


def test_few_files_are_used_again_and_again(connect, tmp_path):
    trainer = trainer_on(connect, "async", 1, tmp_path, every_updates=1, copies=2)
    trainer.fit(data(), epochs=3, verbose=0)
    hosted = [name for name in os.listdir(tmp_path) if name.startswith("hosted-")]
    # Two are kept, one is being written: of 2 ps, a part and a copy, of two files.
    assert len(hosted) == 3 * 2 * 2 * 2


def test_what_does_not_go(connect, tmp_path):
    trainer = trainer_on(connect, "async", 1, tmp_path, copies=3)
    with pytest.raises(tfps.ConfigError, match=r"copies=3 .* there are 2"):
        trainer.fit(data(), verbose=0)
    trainer = trainer_on(connect, "async", 1, tmp_path / "two", copies=2)
    trainer.fit(data(), verbose=0)
    with pytest.raises(tfps.SnapshotDamaged, match="on the hosts of the parameter servers"):
        from tfps.training import snapshot_files

        found = snapshot_files.chosen(str(tmp_path / "two"), None)
        snapshot_files.export(str(tmp_path / "two"), found, str(tmp_path / "x.keras"))
