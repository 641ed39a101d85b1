"""The README's library example runs as it stands, and what it names exists."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("example", "said"), list(zip(EXAMPLES, ["'mae'", "20"], strict=True)), ids=["fit", "schedule"]
)
def test_example_runs(tmp_path, example, said):
    (tmp_path / "runs").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert (tmp_path / "runs" / "readme.keras").exists() or said != "'mae'"


def test_files_and_targets_exist():
    for path in re.findall(r"`((?:tfps|launch|models|docs|tests|benchmarks)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (demo|test|lint)\b", README):
        assert f"\n{target}:" in makefile
