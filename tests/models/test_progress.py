"""The progress line of the binaries."""

import io
import math

from models.progress import Progress


def lines(steps: int, ends: list[int]) -> list[str]:
    """What is printed in an epoch of `steps` whose calls end with the batches of index `ends`."""
    out = io.StringIO()
    progress = Progress(64, "tokens", lambda logs: f"loss {logs['val_loss']}", out)
    progress.set_params({"steps": steps, "epochs": 2})
    progress.on_epoch_begin(0)
    for end in ends:
        progress.on_train_batch_end(end, {"loss": 2.5})
    return out.getvalue().splitlines()


def test_an_epoch_ends_with_its_last_step():
    (line,) = lines(20, [7, 15, 19])
    assert "epoch 1/2" in line and "20/20" in line and "loss 2.500" in line
    assert "tokens/s" in line and "left" in line


def test_the_last_of_several_calls_may_be_short():
    # Keras counts a call of 8 steps in full though only 4 were left.
    (line,) = lines(20, [7, 15, 23])
    assert "20/20" in line and "─" not in line


def test_a_validation_gets_a_line():
    out = io.StringIO()
    progress = Progress(64, "rows", lambda logs: f"error {logs['val_loss']:.2f}", out)
    progress.on_epoch_begin(0)
    progress.on_epoch_end(0, {"loss": 1.0})
    assert out.getvalue() == ""
    progress.on_epoch_end(0, {"loss": 1.0, "val_loss": 0.5})
    assert out.getvalue().startswith("  validation: error 0.50  (epoch took 0:0")


def speed(monkeypatch, epochs):
    """The speed after epochs of 6 steps, each (s, index of the batch with which it began)."""
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress = Progress(64, "tokens", str, io.StringIO())
    progress.set_params({"steps": 6, "epochs": 4})
    for epoch, (seconds, first) in enumerate(epochs):
        progress.on_epoch_begin(epoch)
        progress.on_train_batch_begin(first)
        now += seconds / 2
        progress.on_train_batch_end(first)
        progress.on_train_batch_begin(first + 1)
        now += seconds / 2
        progress.on_train_batch_end(5)
        now += 100.0  # A validation.
    return progress.per_second()


def test_speed_is_that_of_the_median_epoch(monkeypatch):
    # The first epoch, which traces, does not count.
    assert speed(monkeypatch, [(50.0, 0), (2.0, 0), (4.0, 0), (3.0, 0)]) == 64 * 6 / 3
    # Only the batches that were trained here do.
    assert speed(monkeypatch, [(8.0, 2)]) == 64 * 4 / 8
    assert math.isnan(speed(monkeypatch, []))
