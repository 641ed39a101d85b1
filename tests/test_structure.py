"""The shape of the package: what imports what, and what is public."""

import ast
import pathlib
import subprocess
import sys

import pytest

import tfps

ROOT = pathlib.Path(tfps.__file__).parent.parent

# A module may import from those before it.
ORDER = [
    "errors",
    "parsing",
    "schedule",
    "net",
    "channels",
    "xla",
    "farewell",
    "cluster",
    "server",
    "local",
    "_tf",
    "_keras",
    "devices",
    "faults",
    "packing",
    "results",
    "values",
    "closures",
    "backlog",
    "coordinator",
    "placement",
    "partitioners",
    "remote",
    "strategy",
    "layout",
    "frozen",
    "optimizers",
    "loss_scale",
    "compression",
    "wire",
    "tables",
    "program",
    "plan",
    "store",
    "pull",
    "apply",
    "update",
    "push",
    "report",
    "repeat",
    "inference",
    "gradient",
    "step",
    "ahead_step",
    "round_step",
    "local_copy",
    "local_step",
    "data",
    "consistency",
    "mode",
    "dispatcher",
    "loop",
    "session",
    "callbacks",
    "training",
    "trainer",
]


def imports(path: pathlib.Path) -> list[str]:
    """Full names of everything that a file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{a.name}" for a in node.names]
    return found


def module_of(path: pathlib.Path) -> str:
    """The module, or the package, of tfps that a file belongs to."""
    return path.relative_to(ROOT / "tfps").parts[0].removesuffix(".py")


def sources(package: str) -> list[pathlib.Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_order_names_every_module():
    assert sorted(ORDER) == sorted({module_of(p) for p in sources("tfps")} - {"__init__"})


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_one_way(module):
    allowed = set(ORDER[: ORDER.index(module)]) | {module}
    for path in [p for p in sources("tfps") if module_of(p) == module]:
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "tfps" and parts[1:] != ["errors"]:
                assert parts[1] in allowed, f"{path} imports {name}"


def test_core_imports_neither_launch_nor_models():
    for path in sources("tfps"):
        for name in imports(path):
            assert name.split(".")[0] not in ("models", "launch", "benchmarks"), path


@pytest.mark.parametrize(
    ("prefix", "home"), [("tensorflow.python", "_tf.py"), ("keras.src", "_keras.py")]
)
def test_private_names_have_one_home(prefix, home):
    for package in ("tfps", "models"):
        for path in sources(package):
            if path.name != home:
                assert not [n for n in imports(path) if n.startswith(prefix)], path


def test_public_names_are_complete():
    tree = ast.parse((ROOT / "tfps" / "__init__.py").read_text())
    imported = [
        a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names
    ]
    assert sorted(tfps.__all__) == sorted(imported)
    assert all(getattr(tfps, name).__doc__ for name in tfps.__all__)


def test_errors_derive_from_the_base():
    from tfps import errors

    public = [v for v in vars(errors).values() if isinstance(v, type)]
    assert all(issubclass(cls, tfps.Error) for cls in public)


def test_importing_leaves_tensorflow_to_be_configured():
    program = (
        "import tensorflow as tf, tfps; tf.config.threading.set_intra_op_parallelism_threads(1)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
