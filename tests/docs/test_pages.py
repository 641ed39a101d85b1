"""The documentation names what exists, and its program runs as it stands."""

import importlib.util
import json
import os
import pathlib
import re

import pytest

import tfps
from tests import warm
from tfps.cluster import sockets

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FOLDERS = "tfps|launch|models|docs|tests|benchmarks|examples"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_names_exist(page):
    text = page.read_text()
    for path in re.findall(rf"`((?:{FOLDERS})/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module.rstrip(".")), module
    for name in re.findall(r"`tfps\.([\w.]+)", text):
        if name.split(".")[0] in ("layers", "ledger", "server"):
            continue  # Still to come, or what a name was called before.
        found = tfps
        for part in name.split("."):
            assert hasattr(found, part), f"tfps.{name}"
            found = getattr(found, part)


def test_the_reference_has_every_public_name():
    reference = "".join(page.read_text() for page in DOCS.glob("reference/*.md"))
    described = {d.rpartition(".")[2] for d in re.findall(r"^::: tfps\.([\w.]+)$", reference, re.M)}
    modules = [
        tfps,
        tfps.compression,
        tfps.consistency,
        tfps.layers,
        tfps.partitioners,
        tfps.serving,
    ]
    modules.append(tfps.partitioners)
    names = {name for module in modules for name in module.__all__}
    # Of these modules a page has all names; of the others it names each.
    for module in (tfps.errors, tfps.partitioners):
        assert module.__name__.rpartition(".")[2] in described
        names -= vars(module).keys()
    assert names - described <= {"compression", "consistency", "data", "layers", "serving"}


@pytest.mark.parametrize("name", ["wire", "dispatch", "allreduce", "quality"])
def test_plots_show_the_tables(name):
    spec = importlib.util.spec_from_file_location("plots", DOCS / "plots.py")
    plots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plots)
    # Matplotlib writes the metadata as they are into a text chunk of the file.
    drawn = f"Source\0{plots.digest(name)}".encode() in (DOCS / f"{name}.png").read_bytes()
    assert drawn, f"the tables of {name}.png have changed; run python docs/plots.py"


@pytest.mark.processes
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
        log = tmp_path / f"{job}.log"
        processes[job] = warm.start(["train.py"], tmp_path, environ, log)
    try:
        for process in processes.values():
            process.wait(100)
    finally:
        for process in processes.values():
            process.kill()
    said = {job: (tmp_path / f"{job}.log").read_text() for job in processes}
    assert [p.returncode for p in processes.values()] == [0, 0, 0], said
    assert f"ps 0 serves at {ps}" in said["ps"] and "ps 0: the job is done" in said["ps"]
    assert "val_accuracy" in said["chief"] and "fullest/mean 1.000" in said["chief"]


def test_the_page_of_examples_shows_all_of_them():
    """The line that includes a file looks like Python, and a formatter may take it for that."""
    page = (ROOT / "docs" / "howto" / "examples.md").read_text()
    for path in (ROOT / "examples").glob("*.py"):
        assert f'\n--8<-- "examples/{path.name}"\n' in page
