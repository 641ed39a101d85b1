"""The progress line of the language model's binary."""

import io

from models.gpt.progress import Progress


def lines(steps: int, ends: list[int]) -> list[str]:
    """What is printed in an epoch of `steps` whose calls end with the batches of index `ends`."""
    out = io.StringIO()
    progress = Progress(tokens_per_step=64, bytes_per_token=1.0, out=out)
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
