"""Servers are killed while a real job trains: every batch is on every ps exactly once."""

import signal
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps.cluster import members, replacements
from tfps.ledger import check

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

RECORDS = 400

POLICIES = {
    "async": {},
    "overlap": {"overlap": 2},
    "bounded": {"consistency": tfps.BoundedStaleness(1)},
    "rounds": {"consistency": tfps.Sync()},
    "local steps": {"consistency": tfps.LocalSteps(3, outer="average", merge="each")},
}
SOAK = "overlap", "bounded", "local steps"


class Ledger(keras.layers.Layer):
    """Counts, on each of two servers, how often each record was trained on."""

    def build(self, shape):
        def counts(name, size):
            return self.add_weight(
                name=name, shape=(size,), dtype="int32", initializer="zeros", trainable=False
            )

        # Of two sizes, so that they lie in different buckets, and on different servers.
        self.small, self.large = counts("small", RECORDS), counts("large", 70_000)
        self.w = self.add_weight(name="w", shape=(20_000,), initializer="zeros")

    def call(self, x, training=False):
        if training:
            ids = tf.cast(x, "int32")
            for counts in self.small, self.large:
                counts.assign(tf.tensor_scatter_nd_add(counts, ids, tf.ones_like(ids[:, 0])))
        return tf.reduce_sum(self.w[:1]) + 0 * x

    def totals(self):
        return np.asarray(self.small), np.asarray(self.large)[:RECORDS]


class Table(keras.Model):
    """Counts, in a table that grows, how often each record was trained on."""

    def __init__(self):
        super().__init__()
        self.rows = tfps.layers.HashEmbedding(1, expected=RECORDS, initializer="zeros")

    def call(self, x):
        return self.rows(tf.cast(x[:, 0], "int64"))

    def totals(self):
        """The table's rows of all records, as counts."""
        return (np.asarray(self(np.arange(RECORDS, dtype=np.float32)[:, None]))[:, 0],)


def counting(counted):
    """A model that is one of the two, compiled so that its counts come out."""
    if isinstance(counted, Table):
        counted.compile(keras.optimizers.SGD(2.0), lambda y, p: -p)  # Batches are of 2 records.
        return counted
    model = keras.Sequential([keras.Input([1]), counted])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def trained(cluster, killed, epochs, callbacks=(), counted=Ledger, **arguments):
    """Trains while servers are killed one after the other; returns the model's ledger."""
    strategy = tfps.ParameterServerStrategy(cluster)
    ledger = counted()
    model = counting(ledger)
    trainer = tfps.Trainer(model, strategy, **arguments)
    left = list(killed)
    over = threading.Event()
    done = 0

    class Killer(keras.callbacks.Callback):
        """Begins to kill when training is under way."""

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                threading.Thread(target=kill, daemon=True).start()

        def on_train_end(self, logs=None):
            over.set()

    def kill():
        for name in list(left):
            if over.wait(1.0):
                return
            (kept,) = [one for one in cluster._kept if one.name == name]
            kept.process.kill()
            left.remove(name)

    ids = np.arange(RECORDS, dtype=np.float32)[:, None]
    begun = time.monotonic()
    # More epochs if training was quicker than the killer.
    while left or not done:
        over.clear()
        hooks = [Killer(), *callbacks]
        trainer.fit(ids, ids, batch_size=2, epochs=epochs, verbose=0, callbacks=hooks)
        done += epochs
        assert time.monotonic() - begun < 200, f"{left} were not killed"
    if counted is Ledger:
        assert all(f" {ps} " in str(strategy.placement()) for ps in (0, 1))
    return ledger, done


def require_once(folder, epochs):
    """The ledger says so, too."""
    (line, *rest), code = check(folder)
    assert line.startswith(f"each of {RECORDS * epochs:,} records once on each of 2 ps"), [
        line,
        *rest,
    ]
    assert code == 0


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.soak if n in SOAK else []) for n in POLICIES]
)
def test_a_killed_worker_costs_no_batch(name, tmp_path):
    with tfps.LocalCluster(workers=3, ps=2, processes=True) as cluster:
        killed = ["worker 1", "worker 0", "worker 1"]
        ledger, epochs = trained(cluster, killed, 6, ledger=tmp_path, **POLICIES[name])
    for counts in ledger.totals():
        np.testing.assert_array_equal(counts, epochs)
    require_once(tmp_path, epochs)


@pytest.mark.parametrize("name", ["async", pytest.param("rounds", marks=pytest.mark.soak)])
def test_a_killed_ps_comes_back_to_the_newest_snapshot(name, tmp_path):
    with tfps.LocalCluster(workers=2, ps=2, processes=True) as cluster:
        arguments = {"snapshots": tfps.Snapshots(tmp_path / "snapshots", every=1.0)}
        arguments |= {"ledger": tmp_path / "ledger", **POLICIES[name]}
        ledger, epochs = trained(cluster, ["ps 1", "worker 0", "ps 0"], 8, **arguments)
    for counts in ledger.totals():
        np.testing.assert_array_equal(counts, epochs)
    require_once(tmp_path / "ledger", epochs)


class KilledAtTheEnds(keras.callbacks.Callback):
    """Kills a ps before the first step, and another one after the last."""

    def __init__(self, cluster, epochs):
        super().__init__()
        self._cluster, self._epochs, self.killed = cluster, epochs, []

    def kill(self, name):
        if name not in self.killed:
            self.killed.append(name)
            (kept,) = [one for one in self._cluster._kept if one.name == name]
            kept.process.kill()
            kept.process.wait(20)

    def on_epoch_begin(self, epoch, logs=None):
        self.kill("ps 1")

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self._epochs - 1:
            self.kill("ps 0")


def test_a_ps_is_killed_before_the_first_step_and_another_after_the_last(tmp_path):
    with tfps.LocalCluster(workers=2, ps=2, processes=True) as cluster:
        hooks = KilledAtTheEnds(cluster, 2)
        arguments = {"snapshots": tfps.Snapshots(tmp_path / "snapshots", every=3600)}
        arguments |= {"ledger": tmp_path / "ledger"}
        ledger, epochs = trained(cluster, [], 2, callbacks=[hooks], **arguments)
    assert hooks.killed == ["ps 1", "ps 0"]
    for counts in ledger.totals():
        np.testing.assert_array_equal(counts, epochs)
    require_once(tmp_path / "ledger", epochs)


class Frozen(keras.callbacks.Callback):
    """Freezes a ps and kills a worker in the same moment; the ps thaws when it is given up."""

    def __init__(self, cluster):
        super().__init__()
        self._kept = {one.name: one for one in cluster._kept}
        self._members = members.of(cluster)
        self._members.patience["ps"] = 6.0
        self.thawed = threading.Event()

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            ps = self._kept["ps 1"].process
            ps.send_signal(signal.SIGSTOP)
            self._kept["worker 0"].process.kill()
            threading.Thread(target=self._thaw, args=(ps,), daemon=True).start()

    def _thaw(self, ps):
        if members.Task("ps", 1) in self._members.wait_lost(60.0, {members.Task("worker", 0)}):
            self.thawed.set()
        ps.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("name", ["async", pytest.param("rounds", marks=pytest.mark.soak)])
def test_a_ps_freezes_while_a_worker_is_lost(name, tmp_path):
    """Nobody waits for the ps without a limit, and its loss ends nothing."""
    with tfps.LocalCluster(workers=2, ps=2, processes=True) as cluster:
        frozen = Frozen(cluster)
        arguments = {"snapshots": tfps.Snapshots(tmp_path / "snapshots", every=1.0)}
        arguments |= {"ledger": tmp_path / "ledger", **POLICIES[name]}
        ledger, epochs = trained(cluster, [], 4, callbacks=[frozen], **arguments)
    assert frozen.thawed.is_set()
    for counts in ledger.totals():
        np.testing.assert_array_equal(counts, epochs)
    require_once(tmp_path / "ledger", epochs)


def test_a_worker_is_back_before_its_validation_data_is_first_read(tmp_path):
    """The datasets of a validation are made before training, on workers that may die in it."""
    x = np.random.default_rng(0).normal(size=(160, 4)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)

    def mine(context):
        part = slice(context.worker_index, None, context.num_workers)
        return tf.data.Dataset.from_tensor_slices((x[part], y[part])).batch(4)

    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    with tfps.LocalCluster(workers=2, ps=1, processes=True) as cluster:
        trainer = tfps.Trainer(model, tfps.ParameterServerStrategy(cluster))
        living, killed, lost = trainer._session.calls.living, [], []

        class Killer(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if not killed:
                    (kept,) = [one for one in cluster._kept if one.name == "worker 1"]
                    kept.process.kill()
                    kept.process.wait(20)
                    killed.append(epoch)

            def on_train_batch_end(self, batch, logs=None):
                if len(living) < 2:
                    lost.append(batch)
                    time.sleep(0.02)

        history = trainer.fit(
            mine, steps_per_epoch=1000, verbose=0, callbacks=[Killer()], validation_data=mine
        ).history
        assert lost and len(living) == 2
        whole = model.evaluate(x, y, verbose=0)
        np.testing.assert_allclose(history["val_loss"][-1], whole, rtol=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["async", "overlap"])
def test_a_table_that_grows_comes_back_with_its_keys(name, tmp_path):
    with tfps.LocalCluster(workers=3, ps=2, processes=True) as cluster:
        arguments = {"snapshots": tfps.Snapshots(tmp_path / "snapshots", every=1.0)}
        arguments |= {"ledger": tmp_path / "ledger", **POLICIES[name]}
        killed = ["worker 1", "ps 1", "worker 0", "ps 0"]
        ledger, epochs = trained(cluster, killed, 8, counted=Table, **arguments)
    (rows,) = ledger.totals()
    np.testing.assert_array_equal(rows, epochs)
    require_once(tmp_path / "ledger", epochs)


@pytest.mark.parametrize("on_lost_ps", ["wait", "reshard"])
def test_other_servers_take_the_part_of_a_ps_that_does_not_return(
    on_lost_ps, tmp_path, monkeypatch, capsys
):
    """First a spare one, then another, and then a living ps if it is to."""
    monkeypatch.setattr(replacements, "SPARE_AFTER", 1.0)
    monkeypatch.setattr(replacements, "SHARE_AFTER", 2.0)
    spares = 2 if on_lost_ps == "wait" else 1
    with tfps.LocalCluster(2, 2, processes=True, restarts=0, spares=spares) as cluster:
        first = cluster.spec["ps"][1]
        killed = ["ps 1", "spare 0"]

        class Killer(keras.callbacks.Callback):
            """Kills whoever is ps 1 at the end of an epoch."""

            def on_epoch_end(self, epoch, logs=None):
                if killed:
                    name = killed.pop(0)
                    (kept,) = [one for one in cluster._kept if one.name == name]
                    kept.process.kill()

        arguments = {"snapshots": tmp_path / "snapshots", "ledger": tmp_path / "ledger"}
        ledger, epochs = trained(
            cluster, [], 6, on_lost_ps=on_lost_ps, callbacks=[Killer()], **arguments
        )
        assert not killed and first not in cluster.spec["ps"]
        hosts = [cluster.started["ps"][0]] if on_lost_ps == "reshard" else []
        assert cluster.shared == hosts
    for counts in ledger.totals():
        np.testing.assert_array_equal(counts, epochs)
    require_once(tmp_path / "ledger", epochs)
    said = capsys.readouterr().err
    assert f"{cluster.started['spare'][0]} takes its place" in said
    assert ("ps 0 takes its part as well" in said) == (on_lost_ps == "reshard")
    assert [process.returncode for process in cluster.ended] == [
        *(0, 0, 0, -signal.SIGKILL, -signal.SIGKILL),
        *[0] * (spares - 1),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "overlap",
        pytest.param("async", marks=pytest.mark.soak),
        pytest.param("rounds", marks=pytest.mark.soak),
        pytest.param("local steps", marks=pytest.mark.soak),
    ],
)
def test_a_worker_that_is_told_to_end_hands_back_what_it_holds(name, tmp_path):
    """Nothing is repeated, and it ends within 5 s with 143."""
    with tfps.LocalCluster(workers=2, ps=2, processes=True) as cluster:
        (kept,) = [one for one in cluster._kept if one.name == "worker 1"]
        process = kept.process
        took = []

        class Terminating(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                if epoch == 0:
                    threading.Thread(target=self.terminate, daemon=True).start()

            def terminate(self):
                time.sleep(0.5)
                begun = time.monotonic()
                process.terminate()
                process.wait(20)
                took.append(time.monotonic() - begun)

            def on_train_batch_end(self, batch, logs=None):
                if took:
                    self.model.stop_training = True

        ledger = Ledger()
        model = keras.Sequential([keras.Input([1]), ledger])
        model.compile(keras.optimizers.SGD(0.01), "mse")
        strategy = tfps.ParameterServerStrategy(cluster)
        trainer = tfps.Trainer(model, strategy, ledger=tmp_path, **POLICIES[name])
        ids = np.arange(RECORDS, dtype=np.float32)[:, None]
        trainer.fit(ids, ids, batch_size=2, epochs=2000, verbose=0, callbacks=[Terminating()])
        assert process.returncode == 143 and took[0] < 5
    assert sum(trainer.stats["repeated_units"]) == sum(trainer.stats["refused_pushes"]) == 0
    (line, *rest), code = check(tmp_path)
    assert code == 0 and "repeated" not in line, [line, *rest]


def test_without_snapshots_a_lost_ps_is_one_line():
    with tfps.LocalCluster(workers=2, ps=2, processes=True) as cluster:
        with pytest.raises(tfps.TaskLost, match=r"ps 1 \(.*snapshots=") as caught:
            trained(cluster, ["ps 1"], 40)
        assert "\n" not in str(caught.value)
        cluster.close("a ps is lost")


class Killing(keras.callbacks.Callback):
    """Kills a worker after some batches of an evaluation or a prediction."""

    def __init__(self, cluster, name, batch):
        super().__init__()
        self._cluster, self._name, self._batch = cluster, name, batch
        self.batches = []

    def _end(self, batch):
        self.batches.append(batch)
        if len(self.batches) == self._batch:
            (kept,) = [one for one in self._cluster._kept if one.name == self._name]
            kept.process.kill()

    def on_test_batch_end(self, batch, logs=None):
        self._end(batch)

    def on_predict_batch_end(self, batch, logs=None):
        self._end(batch)


def test_a_worker_killed_while_it_infers_costs_no_example():
    x = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    with tfps.LocalCluster(workers=3, ps=1, processes=True) as cluster:
        trainer = tfps.Trainer(model, tfps.ParameterServerStrategy(cluster))
        at = Killing(cluster, "worker 1", 40)
        evaluated = trainer.evaluate(x, y, batch_size=4, verbose=0, callbacks=[at])
        np.testing.assert_allclose(evaluated, model.evaluate(x, y, verbose=0), rtol=1e-5)
        assert len(at.batches) == len(set(at.batches)) == 150
        at = Killing(cluster, "worker 2", 40)
        predicted = trainer.predict(x, batch_size=4, verbose=0, callbacks=[at])
        np.testing.assert_allclose(predicted, model.predict(x, verbose=0), rtol=1e-4, atol=1e-5)
        assert at.batches == list(range(150))
        # Without hooks, reports stay on their workers; they are lost with them.
        (kept,) = [one for one in cluster._kept if one.name == "worker 0"]
        threading.Timer(0.3, kept.process.kill).start()
        for _ in range(5):
            evaluated = trainer.evaluate(x, y, batch_size=4, verbose=0)
            np.testing.assert_allclose(evaluated, model.evaluate(x, y, verbose=0), rtol=1e-5)


class KillingOnce(Killing):
    """Kills a worker in the first validation of a `fit`, and stops when it has trained again."""

    def __init__(self, cluster, name, batch, trainer):
        super().__init__(cluster, name, batch)
        self._trainer, self._back = trainer, 0

    def on_epoch_end(self, epoch, logs=None):
        living = self._trainer._session.calls.living
        self._back += epoch > 0 and len(living) == 2
        self.model.stop_training = self._back == 2


@pytest.mark.parametrize("waits", [pytest.param(False, marks=pytest.mark.soak), True])
def test_a_worker_killed_in_a_validation_is_missed_by_nobody(waits, tmp_path):
    """Its inner optimizer is gone, be it back in the snapshot and the epoch that follow or not."""
    x = np.random.default_rng(0).normal(size=(160, 4)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    with tfps.LocalCluster(workers=2, ps=1, processes=True) as cluster:
        trainer = tfps.Trainer(
            model,
            tfps.ParameterServerStrategy(cluster),
            tfps.LocalSteps(2),
            min_workers=2 if waits else 1,
            snapshots=tfps.Snapshots(tmp_path, every=0.01),
        )
        at = KillingOnce(cluster, "worker 1", 10, trainer)
        history = trainer.fit(
            x, y, batch_size=4, epochs=2000, verbose=0, callbacks=[at], validation_data=(x, y)
        ).history
        assert at._back == 2 and len(trainer.state.memory()["pseudo-gradients"]) == 2
    assert history["val_loss"][-1] < history["val_loss"][0]
