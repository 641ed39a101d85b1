"""Codecs that are chosen while training goes on."""

import keras
import numpy as np
import pytest

import tfps
from tests.conftest import mlp, regression
from tfps.training import auto_codecs, link_probe
from tfps.training.auto_codecs import _Watch
from tfps.training.link_probe import Links

FAST = Links(5e9, 5e9, 1e-5)
SLOW = Links(2e6, 2e6, 1e-3)


def wide():
    """A model of which a step is little work beside its megabyte of weights."""
    model = mlp(inputs=8, units=512)
    model = keras.Sequential([*model.layers[:1], keras.layers.Dense(512), model.layers[-1]])
    model.build([None, 8])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


@pytest.fixture
def links(monkeypatch):
    """The links that the next measurement finds."""
    found = {"now": FAST, "asked": 0}

    def measure(calls, num_ps):
        found["asked"] += 1
        return found["now"]

    monkeypatch.setattr(link_probe, "measure", measure)
    monkeypatch.setattr(auto_codecs, "_SECONDS", 0.0)
    return found


def fit(trainer, epochs):
    x, y = regression()
    return trainer.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False)


def test_where_no_codec_pays_training_is_plain_keras(connect, links, capfd):
    model, reference = wide(), wide()
    reference.set_weights(model.get_weights())
    trainer = tfps.Trainer(model, connect(1, 2), push="auto", pull="auto")
    for one in trainer, reference:
        fit(one, 3)
    assert links["asked"] >= 1
    assert trainer._session.auto.chosen == ("identity", "identity")
    assert "do not compress" in capfd.readouterr().err
    for ours, keras_ in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, keras_, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_slow_link_gets_codecs_and_a_fast_one_none(connect, links, capfd, monkeypatch, overlap):
    links["now"] = SLOW
    model = wide()
    trainer = tfps.Trainer(model, connect(2, 2), push="auto", pull="auto", overlap=overlap)
    losses = fit(trainer, 3).history["loss"]
    push, pull = trainer._session.auto.chosen
    assert push == "int8", "codecs that need a warm-up are not chosen without one"
    # With overlap, pulls are behind pushes, which have eight bits as well.
    assert pull.startswith("int8" if overlap else "difference:")
    assert capfd.readouterr().err.count("codecs: ") == 1
    whole = sum(w.size * 4 for w in model.get_weights())
    assert trainer.stats["pull_bytes_per_step"][-1] < (0.4 if overlap else 0.2) * whole
    assert trainer.stats["push_bytes_per_step"][-1] < 0.4 * whole
    # Steps take another length, and so the links are looked at again.
    links["now"] = FAST
    monkeypatch.setattr(auto_codecs, "_differ", lambda a, b: True)
    losses += fit(trainer, 4).history["loss"]
    assert trainer._session.auto.chosen == ("identity", "identity")
    assert trainer.stats["pull_bytes_per_step"][-1] == pytest.approx(whole, rel=0.02)
    assert losses[-1] < losses[0]


def test_only_one_way_may_be_chosen(connect, links):
    links["now"] = SLOW
    trainer = tfps.Trainer(wide(), connect(1, 2), push="bfloat16", pull="auto")
    fit(trainer, 2)
    push, pull = trainer._session.auto.chosen
    assert (push, pull[:10]) == ("identity", "difference")
    assert trainer.stats["push_bytes_per_step"][-1] < 0.6 * trainer.model.count_params() * 4


def test_a_warmup_allows_more(connect, links):
    links["now"] = Links(1e5, 1e5, 1e-3)
    model = wide()
    model.compile("adam", "mse")
    trainer = tfps.Trainer(model, connect(1, 2), push="auto", pull="auto", push_warmup=45)
    fit(trainer, 3)
    assert trainer._session.auto.chosen[0] in ("onebit", "topk:0.01", "powersgd:4")
    assert trainer._session.state.chief.frozen_at >= 45


def test_local_steps_are_refused(connect):
    with pytest.raises(tfps.ConfigError, match="name the codecs"):
        fit(
            tfps.Trainer(wide(), connect(1, 2), push="auto", consistency=tfps.LocalSteps(4)),
            1,
        )


def test_a_watch_counts_no_pause(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 10.0, 11.0])
    monkeypatch.setattr(auto_codecs.time, "perf_counter", lambda: next(clock))
    watch = _Watch()
    for _ in range(3):
        watch.add(5)
    assert watch.length(1, 11) is None
    watch.stop()
    for _ in range(2):
        watch.add(5)
    assert watch.steps == 15
    assert watch.length(2) == pytest.approx(3 * 2 / 15)


def test_links_are_measured(connect):
    model = wide()
    trainer = tfps.Trainer(model, connect(2, 2))
    fit(trainer, 1)
    links = link_probe.measure(trainer._session.calls, 2)
    # Within one process a copy is all there is.
    assert min(links.down, links.up) > 1e7
    assert 0 < links.latency < 1
