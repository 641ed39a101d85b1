"""What snapshots have of a table that grows while keys are let in, and chiefs that are killed."""

import random
import signal
import time

import keras
import numpy as np
import pytest

import tfps
from tests.store import growing_program as program
from tests.training.test_snapshot_kills import Job, ended, torn
from tfps.embeddings.handles import COUNT, KEY
from tfps.embeddings.keys import ids_of
from tfps.store.snapshot_folder import Folder
from tfps.store.snapshot_form import Form
from tfps.store.snapshot_places import Shared
from tfps.store.snapshot_reading import SavedServers
from tfps.training.snapshot_files import listed


def test_saves_while_keys_are_let_in(connect, tmp_path):
    """Each of 20 snapshots has rows, slots and counts of the same keys, and of one moment."""
    ids = keras.Input([4], dtype="int64")
    layer = tfps.layers.HashEmbedding(2, expected=100, initializer="zeros")
    model = keras.Model(ids, layer(ids))
    model.compile(keras.optimizers.SGD(1.0, momentum=0.5), loss=lambda y, p: y * p)
    # Every update of an id has the same gradient, so counts say what row and momentum are.
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.permutation(400) + 1, rng.permutation(400) + 1]).reshape(-1, 4)
    y = np.broadcast_to(x[:, :, None], (*x.shape, 2)).astype(np.float32)
    snapshots = tfps.Snapshots(tmp_path, every=None, every_updates=8, keep=100)
    trainer = tfps.Trainer(model, connect(workers=2), snapshots=snapshots)
    trainer.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    keys = []
    for one in listed(str(tmp_path)):
        form = Form(**one.manifest.content["form"])
        (table,) = SavedServers(Shared(Folder(str(tmp_path)), one.id), form).load().tables.values()
        held = ids_of(table.meta[:, KEY])
        assert len(np.unique(held)) == len(held)
        gradient = held / 8  # A mean of 8 elements.
        count = table.meta[:, COUNT]
        assert set(np.unique(count)) <= {1, 2}
        momentum = -gradient * np.where(count == 1, 1, 1.5)
        np.testing.assert_allclose(table.rows["momentums"], np.stack([momentum] * 2, 1), rtol=1e-5)
        row = momentum - np.where(count == 1, 0, gradient)
        np.testing.assert_allclose(table.rows[""], np.stack([row] * 2, 1), rtol=1e-5)
        keys.append(len(held))
    assert len(keys) >= 20 and max(keys) == 400 and len(set(keys)) > 10


@pytest.mark.processes
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_at_any_moment_of_writing_a_table(tmp_path):
    """A chief that is killed while it saves goes on from the snapshot before, to the same rows."""

    def result(folder, kills):
        (tmp_path / folder).mkdir()
        job, dice = Job(tmp_path / folder, 0.01, 20, program), random.Random(kills)
        done = cut_short = 0
        while True:
            process = job.start()
            try:
                job.until("trains", process)
                if done < kills:
                    time.sleep(dice.uniform(0.0, 1.0))
                    process.kill()
            finally:
                code = ended(process, limit=300)
            if code != -signal.SIGKILL:
                assert code == 0, job.said()
                return job.result.read_text(), done, cut_short
            done, cut_short = done + 1, cut_short + torn(job.folder)

    whole, _, _ = result("whole", 0)
    cut, done, cut_short = result("cut", 10)
    assert cut == whole and done >= 5 and cut_short > 0
