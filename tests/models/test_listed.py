"""What `python -m models` lists, and what each model has."""

import importlib
import pathlib

import pytest

from models.__main__ import listed, main

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_each_model_has_a_line(capsys):
    main()
    lines = capsys.readouterr().out.splitlines()
    for name, about in listed():
        assert about.endswith(".")
        assert any(line.split()[:1] == [name] and about in line for line in lines)


def test_flags_of_different_models_have_different_names():
    """Else a process that knows two models, as this one, could not be."""
    for name, _ in listed():
        importlib.import_module(f"models.{name}.__main__")


@pytest.mark.parametrize("name", [name for name, _ in listed()])
def test_each_model_is_described(name):
    assert f"| `{name}` |" in (ROOT / "docs" / "models.md").read_text()
    assert f"`models/{name}/`" in (ROOT / "README.md").read_text()
