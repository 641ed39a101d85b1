"""Every example runs as its docstring says, is short, and prints what it is there to show."""

import os
import pathlib
import re

import numpy as np
import pytest

from tests import warm

ROOT = pathlib.Path(__file__).parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def run(tmp_path):
    """`run(name)`: what an example prints."""

    def run(name: str) -> str:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = warm.run([f"examples/{name}.py"], ROOT, environ, tmp_path)
        assert done.returncode == 0, done.stderr
        print(done.stdout)  # Pytest shows it where a test fails.
        return done.stdout

    return run


def numbers(pattern: str, text: str) -> list[float]:
    """What the groups of a pattern find, over the whole text."""
    found = [g for m in re.finditer(pattern, text) for g in m.groups()]
    return [float(g.replace(",", "")) for g in found]


@pytest.mark.processes
def test_fit(run):
    said = run("fit")
    assert "sequential/dense/kernel" in said
    losses = numbers(r"loss (\S+),", said)
    assert len(losses) == 4 and losses[-1] < 0.3 * losses[0]
    # At most 7 updates of another worker's call pass between the pull and the push of a step.
    assert all(0 <= missed < 8 for missed in numbers(r"missed (\S+) updates", said))
    cluster, plain = re.findall(r"predictions of [\w ]+: (\[[^]]*\])", said)
    assert np.allclose(*[np.fromstring(p[1:-1], sep=" ") for p in (cluster, plain)], atol=0.002)


@pytest.mark.processes
def test_dataset_fn(run):
    said = run("dataset_fn")
    assert "worker 0 of 2 reads part-0.csv, part-2.csv" in said
    assert "worker 1 of 2 reads part-1.csv, part-3.csv" in said
    # Each line once an epoch: 4 files of 256 lines in batches of 16, 3 times.
    assert numbers(r"(\d+) updates", said) == [4 * 256 // 16 * 3]
    assert np.allclose(numbers(r"learned: \[\s*(\S+)\s+(\S+?)\s*\]", said), [2, -1], atol=0.05)


@pytest.mark.processes
def test_splits(run):
    said = run("splits")
    # Each line of 4 files once an epoch, in batches of 16, 3 times; and each file validates once.
    assert numbers(r"(\d+) updates", said) == [4 * 128 // 16 * 3] * 2
    assert sorted(re.findall(r"part-\d", said)) == [f"part-{i}" for i in range(8)]
    assert all(loss < 0.01 for loss in numbers(r"csv: (\S+)", said))


@pytest.mark.processes
def test_custom_codec(run):
    said = run("custom_codec")
    (loss, size), (loss8, size8) = np.reshape(numbers(r"loss (\S+), (\S+) bytes", said), (2, 2))
    assert loss8 < 1.1 * loss
    # An element of the large kernel, 32 x 256, takes 1 byte in place of 4; the scale takes 4.
    assert size - size8 == 3 * 32 * 256 - 4


@pytest.mark.processes
def test_custom_policy(run):
    said = run("custom_policy")
    found = np.reshape(numbers(r"be (\d+) ahead: (\d+) at most, in (\d+) starts", said), (-1, 3))
    allowed, ahead, starts = found.T
    assert list(allowed) == list(range(len(allowed))) and np.all(ahead <= allowed)
    assert ahead.max() > 0 and starts.sum() >= 200


@pytest.mark.processes
def test_large_embedding(run):
    said = run("large_embedding")
    assert re.search(r"table/embeddings +1/2 +0 +6,400,000", said)
    assert re.search(r"table/embeddings +2/2 +1 +6,400,000", said)
    table, pulled, pushed = numbers(r"(?:has|pulls|pushes) +(\S+) bytes", said)
    assert max(pulled, pushed) < table / 1000
    losses = numbers(r"(0\.\d+)", said.partition("loss of each epoch")[2])
    assert losses == sorted(losses, reverse=True)


@pytest.mark.processes
def test_coordinator(run):
    said = run("coordinator")
    read, total, stored = re.search(
        r"read \[(.*)\]\n.*sum is (\d+); on the server: (\d+)", said
    ).groups()
    assert sum(map(float, read.split(","))) == float(total) == float(stored)
    assert re.search(r"WorkerError: worker [01] \(127.0.0.1:\d+\) .*division by zero", said)
    assert "7 // 2 = 3" in said


def test_every_example_has_a_test():
    assert {f"test_{path.stem}" for path in EXAMPLES} <= set(globals())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_say_how_to_run(path):
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert f"Run it with `python examples/{path.name}`." in text


@pytest.mark.processes
def test_hash_embedding(run):
    said = run("hash_embedding")
    held = numbers(r"(\d+) of \d+ users", said)
    assert held[0] < 510 and held[-1] > 800
    *days, strangers = numbers(r"accuracy (\S+)", said)
    assert min(days) > 0.9 and abs(strangers - 0.5) < 0.15
