"""The README's library example runs as it stands, and what it names exists."""

import os
import pathlib
import re

import pytest

from tests import warm

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("example", "said"), list(zip(EXAMPLES, ["'mae'", "20"], strict=True)), ids=["fit", "schedule"]
)
def test_example_runs(tmp_path, example, said):
    (tmp_path / "runs").mkdir()
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = warm.run(["-c", example], tmp_path, environ, tmp_path)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert (tmp_path / "runs" / "readme.keras").exists() or said != "'mae'"


def test_files_and_targets_exist():
    for path in re.findall(r"`((?:tfps|launch|models|docs|tests|benchmarks)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (demo|test|lint)\b", README):
        assert f"\n{target}:" in makefile
