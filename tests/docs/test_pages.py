"""The documentation names what exists, and its program runs as it stands."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import tfps
from tfps.cluster import sockets

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FOLDERS = "tfps|models|docs|tests|benchmarks|examples"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_names_exist(page):
    text = page.read_text()
    for path in re.findall(rf"`((?:{FOLDERS})/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module.rstrip(".")), module
    for name in re.findall(r"`tfps\.([\w.]+)", text):
        if name.split(".")[0] in ("layers", "snapshot", "ledger", "serving", "plan", "server"):
            continue  # Still to come, or what a name was called before.
        found = tfps
        for part in name.split("."):
            assert hasattr(found, part), f"tfps.{name}"
            found = getattr(found, part)


def test_the_reference_has_every_public_name():
    reference = "".join(page.read_text() for page in DOCS.glob("reference/*.md"))
    described = re.findall(r"^::: tfps\.([\w.]+)$", reference, re.M)
    names = {*tfps.__all__, *(f"errors.{n}" for n in vars(tfps.errors))}
    for module in ("compression", "consistency", "partitioners"):
        names |= {f"{module}.{n}" for n in getattr(tfps, module).__all__}
    whole = {"errors", "partitioners"}  # Modules of which a page has everything.
    for name in sorted(n for n in names if not n.rpartition(".")[2].startswith("_")):
        first, _, last = name.rpartition(".")
        found = {name.rpartition(".")[2] for name in described}
        is_module = not first and isinstance(getattr(tfps, name, None), type(tfps))
        assert is_module or first in whole or last in found, name
    assert whole <= set(described)


@pytest.mark.parametrize("name", ["wire", "dispatch", "quality"])
def test_plots_show_the_tables(name):
    spec = importlib.util.spec_from_file_location("plots", DOCS / "plots.py")
    plots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plots)
    # Matplotlib writes the metadata as they are into a text chunk of the file.
    drawn = f"Source\0{plots.digest(name)}".encode() in (DOCS / f"{name}.png").read_bytes()
    assert drawn, f"the tables of {name}.png have changed; run python docs/plots.py"


def test_the_tutorials_program_runs_as_every_task(tmp_path):
    page = (DOCS / "tutorial.md").read_text()
    program, *changes = re.findall(r"```python\n(.*?)```", page, re.S)
    of_task = next(c for c in changes if "from_env" in c)
    embedded = "cluster = tfps.LocalCluster(workers=2, ps=2)\n"
    assert embedded in program
    program = "import sys\n" + program.replace(embedded, of_task).replace("epochs=4", "epochs=1")
    (tmp_path / "train.py").write_text(program)
    chief, ps, worker = (f"127.0.0.1:{port}" for port in sockets.free_ports(3))
    processes = {}
    for job in ("ps", "worker", "chief"):
        config = {
            "cluster": {"chief": [chief], "ps": [ps], "worker": [worker]},
            "task": {"type": job, "index": 0},
        }
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CONFIG": json.dumps(config)}
        processes[job] = subprocess.Popen(
            [sys.executable, "train.py"],
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        said = {job: process.communicate(timeout=100)[0] for job, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    assert [p.returncode for p in processes.values()] == [0, 0, 0], said
    assert f"ps 0 serves at {ps}" in said["ps"] and "ps 0: the job is done" in said["ps"]
    assert "val_accuracy" in said["chief"] and "fullest/mean 1.000" in said["chief"]
