"""Keras's own tests, unchanged, with a Trainer in the models' place.

Keras's wheel ships its tests. Those that train, evaluate or predict must pass through a Trainer as
they pass without one. `make test` runs some of them, `make soak` all, with one worker and with two.
"""

import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import keras
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = pathlib.Path(keras.__file__).parent / "src"

_OTHER_BACKENDS = re.compile(r"/backend/(jax|numpy|openvino|torch)/")
# A test that trains says so, or lets the base class of all tests of layers train.
_TRAINS = re.compile(r"\.(fit|evaluate|predict)\(|run_layer_test|run_training_check")

# Pattern of a test and its message -> the reason for which it may fail.
NOT_OURS = {
    r"test_fit_sparse_\w+: AssertionError: False is not true": "watches the updates of the chief's "
    "optimizer; the servers make them",
    r"(with_tf_distribute|fit_and_regularizer)\b.*DistributedVariable\.handle is not available": (
        "trains under MirroredStrategy, on its variables"
    ),
    r"test_retracing\b.* 4 not less than or equal to 2": "counts traces, of which an own "
    "train_step needs more here",
    r"legacy_load_skips_missing_nested\w*: .*fixture missing": "reads a file that is not in "
    "Keras's wheel",
}
_NUMBERS = r"(?s:.*Not equal to tolerance)"
# The same for more than one worker, whose updates come in any order.
NOT_OF_SEVERAL = {
    rf"test_steps_per_(epoch|execution){_NUMBERS}": "compares the losses of two runs",
    rf"test_loss_weights\b{_NUMBERS}": "knows the losses of one order of updates",
    rf"test_fit_lr_correctness{_NUMBERS}": "knows the losses of one order of updates",
    r"lora.*0\.0\)? not greater than 0\.0": "needs an update that has seen the one before",
    r"test_best_case_step: AssertionError: \d != 2": "counts batches at a hook, where another "
    "worker's may have come",
    r"test_model_state_is_current_on_epoch_end: AssertionError: \d+ != \d+": "counts batches at a "
    "hook, likewise",
}
# Messages of tests for packages that are not installed.
_MISSING = re.compile(r"No module named|requires the '[\w-]+' package")


def files(*folders):
    """Keras's test files that train, below these folders of its source; none of other backends."""
    found = (f for folder in folders for f in sorted((SOURCE / folder).rglob("*_test.py")))
    ours = (f for f in found if not _OTHER_BACKENDS.search(f.as_posix()))
    return [f for f in ours if _TRAINS.search(f.read_text())]


def failures(report):
    """Test -> its message, of a JUnit report; and how many tests came to a Trainer."""
    failed, through = {}, 0
    for case in ET.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        calls = [p.get("value") for p in case.iter("property") if p.get("name") == "trainer_calls"]
        through += any(int(c) for c in calls)
        problems = [p for kind in ("failure", "error") for p in case.iter(kind)]
        if problems:
            # Where a file cannot be imported, only the text says why.
            parts = [problems[0].get("message", "")[:300], (problems[0].text or "")[-300:]]
            failed[name] = " ".join(part.strip() for part in parts)
    return failed, through


def run(tests, workers, report, limit):
    """Runs tests through a Trainer in a process of their own; returns what `failures` does."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.keras.through_trainer"]
    command += [f"--workers={workers}", "-c", os.devnull, f"--rootdir={SOURCE}"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}", "-o", "junit_family=xunit1"]
    command += ["--continue-on-collection-errors"]
    done = subprocess.run(
        [*command, *map(str, tests)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    # Files that cannot be imported without a package are errors of collection, and reported.
    assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
    return failures(report)


def check(tests, workers, report, limit):
    """Asserts that nothing fails but what is listed above; returns how many came to a Trainer."""
    failed, through = run(tests, workers, report, limit)
    excluded = NOT_OURS if workers == 1 else {**NOT_OURS, **NOT_OF_SEVERAL}
    wrong = {
        test: why
        for test, why in failed.items()
        if not _MISSING.search(why) and not any(re.search(p, f"{test}: {why}") for p in excluded)
    }
    assert not wrong, "\n".join(f"{test}: {why}" for test, why in wrong.items())
    return through


@pytest.mark.processes
@pytest.mark.timeout(400)
def test_callbacks(tmp_path):
    names = ("backup_and_restore", "terminate_on_nan")
    tests = [SOURCE / "callbacks" / f"{name}_test.py" for name in names]
    assert check(tests, 1, tmp_path / "report.xml", 380) > 10


@pytest.mark.soak
@pytest.mark.processes
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [1, 2])
def test_everything(tmp_path, workers):
    assert check(files(""), workers, tmp_path / "report.xml", 3500) > 400
