"""The progress line of the binaries."""

import io

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


def test_speed_is_that_of_the_median_epoch(monkeypatch):
    clock = iter([0.0, 50.0, 100.0, 102.0, 200.0, 204.0, 300.0, 303.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    progress = Progress(64, "tokens", str, io.StringIO())
    progress.set_params({"steps": 6, "epochs": 4})
    for epoch in range(4):
        progress.on_epoch_begin(epoch)
        progress.on_train_batch_end(5)
    assert progress.per_second() == 64 * 6 / 3  # The first epoch, which traces, does not count.
