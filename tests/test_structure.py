"""The shape of the package: what imports what, what is public, and what the README names."""

import ast
import functools
import os
import pathlib
import re
import sys

import pytest

import tfps
from tests import warm
from tests.soak_only import SOAK_ONLY

ROOT = pathlib.Path(tfps.__file__).parent.parent

# Packages and modules of `tfps`, from the ground up: each may import only from those before it.
ORDER = [
    *("_quiet", "errors", "exit_codes", "parsing"),
    *(
        "_tf",
        "_tf_members",
        "_tf_busy",
        "_tf_tracing",
        "_tf_placement",
        "_tf_data",
        "_tf_shuffles",
        "_tf_cautions",
        "_tf_resources",
        "_tf_copies",
        "_tf_functions",
    ),
    *("_keras_models", "_keras_data", "_keras_optimizers", "_keras_metrics", "_keras_creation"),
    *("_keras_interception", "_keras_placement", "_keras_variables"),
    *("embeddings", "cluster", "model", "compression", "planning", "coordinator", "store"),
    "strategy",
    *("worker", "profiling", "training", "serving"),
    *(
        "partitioners",
        "consistency",
        "data",
        "layers",
        "serve",
        "snapshot",
        "ledger",
        "plan",
    ),  # Thin: where users look for a name.
]

PACKAGES = sorted(p.parent.name for p in (ROOT / "tfps").glob("*/__init__.py"))

# Names of public modules that are still to come. Nothing else may take them.
RESERVED: set[str] = set()

# What programs outside of the core may import from it.
PUBLIC = {"tfps", *(f"tfps.{name}" for name in tfps.__all__), "tfps.errors"}


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: pathlib.Path) -> list[str]:
    """Full names of everything that a file imports."""
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{a.name}" for a in node.names]
    return found


def room_of(path: pathlib.Path) -> str:
    """The package, or the module, directly below `tfps` that a file belongs to."""
    return path.relative_to(ROOT / "tfps").parts[0].removesuffix(".py")


def sources(folder: str) -> list[pathlib.Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@functools.cache
def rooms_imported(room: str) -> set[str]:
    """The other rooms from which the files of a room import."""
    found = set()
    for path in [p for p in sources("tfps") if room_of(p) == room]:
        parts = [name.split(".") for name in imports(path)]
        found |= {p[1] for p in parts if p[0] == "tfps" and len(p) > 1}
    return found - {room}


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_order_names_every_room():
    assert sorted(ORDER) == sorted({room_of(p) for p in sources("tfps")} - {"__init__"})


@pytest.mark.parametrize("room", ORDER)
def test_imports_point_downwards(room):
    assert rooms_imported(room) <= set(ORDER[: ORDER.index(room)])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_states_its_contract(package):
    text = ast.get_docstring(ast.parse((ROOT / "tfps" / package / "__init__.py").read_text()))
    does, allowed, promises = text.split("\n\n")
    assert does.endswith(".") and promises.endswith(".")
    stated = re.fullmatch(r"May import: (.+)\.", allowed.replace("\n", " "))
    stated = set(re.split(r",\s*", stated[1]))
    assert rooms_imported(package) <= stated <= set(ORDER[: ORDER.index(package)])


def public_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions, and methods of classes, whose names are public; and constructors."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.append(node)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += [n for n in node.body if isinstance(n, ast.FunctionDef)]
    return [f for f in found if not f.name.startswith("_") or f.name in ("__init__", "__call__")]


@pytest.mark.parametrize("room", [*ORDER, "launch"])
def test_public_functions_are_annotated(room):
    if room == "launch":
        paths = sources(room)
    else:
        paths = [p for p in sources("tfps") if room_of(p) == room]
    for path in paths:
        for f in public_functions(parsed(path)):
            arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
            bare = [a.arg for a in arguments if not a.annotation and a.arg not in ("self", "cls")]
            where = f"{path.relative_to(ROOT)}:{f.lineno} {f.name}"
            assert not bare, f"{where} does not annotate {bare}"
            assert f.returns or f.name == "__init__", f"{where} does not say what it returns"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_files_of_a_package_import_each_other(package):
    files = {module_name(p): p for p in sources(f"tfps/{package}")}
    needs = {
        name: {f for f in files for i in imports(p) if i == f or i.startswith(f"{f}.")} - {name}
        for name, p in files.items()
    }
    # A package's own `__init__` is found in the names of all of its files.
    needs = {name: {n for n in found if n not in name} for name, found in needs.items()}
    while needs:
        free = [name for name, found in needs.items() if not found & needs.keys()]
        assert free, f"these import one another: {sorted(needs)}"
        needs = {name: found for name, found in needs.items() if name not in free}


def test_core_imports_nothing_that_is_built_on_it():
    for path in sources("tfps"):
        for name in imports(path):
            assert name.split(".")[0] not in ("models", "launch", "benchmarks", "examples"), path


LAUNCHERS = sources("launch")


def test_launchers_need_nothing_to_be_installed():
    """They start at once where there is no TensorFlow; the agent, where there is no `launch`."""
    for path in LAUNCHERS:
        allowed = {"launch", *sys.stdlib_module_names}
        if path.parent.name != "agent":
            allowed.add("absl")
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path
        if path.parent.name == "agent":
            ours = [name for name in imports(path) if name.startswith("launch")]
            assert all(name.startswith("launch.agent") for name in ours), path
    for folder in ("models", "examples"):
        for path in sources(folder):
            assert not [n for n in imports(path) if n.split(".")[0] == "launch"], path


@pytest.mark.parametrize("package", ["launch", "launch/agent"])
def test_launchers_state_their_contract(package):
    text = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))
    assert "\n\nMay import: " in text


def test_files_of_launch_do_not_import_each_other():
    needs = {module_name(p): {i for i in imports(p)} for p in LAUNCHERS}
    needs = {
        name: {n for n in needs if n != name and "." in n and not name.startswith(f"{n}.")}
        & {i if i in needs else i.rpartition(".")[0] for i in found}
        for name, found in needs.items()
    }
    while needs:
        free = [name for name, found in needs.items() if not found & needs.keys()]
        assert free, f"these import one another: {sorted(needs)}"
        needs = {name: found for name, found in needs.items() if name not in free}


@pytest.mark.parametrize("folder", ["models", "examples"])
def test_programs_reach_public_names_only(folder):
    for path in sources(folder):
        for name in [n for n in imports(path) if n.split(".")[0] == "tfps"]:
            # `from tfps.errors import Error` is a name of a public module.
            assert {name, name.rpartition(".")[0]} & PUBLIC, f"{path} imports {name}"


@pytest.mark.parametrize(
    ("prefix", "home"), [("tensorflow.python", "_tf"), ("keras.src", "_keras")]
)
def test_private_names_have_one_home(prefix, home):
    for folder in ("tfps", "models", "examples"):
        for path in sources(folder):
            if not path.name.startswith(home):
                assert not [n for n in imports(path) if n.startswith(prefix)], path


def test_public_names_are_complete():
    tree = ast.parse((ROOT / "tfps" / "__init__.py").read_text())
    imported = [
        a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names
    ]
    imported = [name for name in imported if not name.startswith("_")]
    assert sorted(tfps.__all__) == sorted(imported)
    assert all(getattr(tfps, name).__doc__ for name in tfps.__all__)


def test_reserved_names_are_free():
    assert not RESERVED & {room_of(p) for p in sources("tfps")}
    assert not RESERVED & set(tfps.__all__)


def test_readme_tour_names_every_module():
    readme = (ROOT / "README.md").read_text()
    # A point of the tour names a folder, then the files in it.
    points = re.split(r"\n\d+\. ", readme[readme.index("## A tour of the files") :])
    for path in [p for p in (*sources("tfps"), *LAUNCHERS) if p.name != "__init__.py"]:
        folder = f"`{path.parent.relative_to(ROOT)}/`"
        point = "".join(p for p in points if folder in p)
        assert f"`{path.name}`" in point, f"the tour does not name {path.name} in {folder}"


def test_tests_mirror_the_packages():
    assert set(PACKAGES) <= {p.parent.name for p in (ROOT / "tests").glob("*/__init__.py")}


def test_errors_derive_from_the_base():
    from tfps import errors

    public = [v for v in vars(errors).values() if isinstance(v, type)]
    assert all(issubclass(cls, tfps.Error) for cls in public)


@pytest.mark.processes
def test_importing_leaves_tensorflow_to_be_configured(tmp_path):
    program = (
        "import tensorflow as tf, tfps; tf.config.threading.set_intra_op_parallelism_threads(1)"
    )
    done = warm.run(["-c", program], ROOT, os.environ, tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_is_left_to_the_soak_exists():
    for file, names in SOAK_ONLY.items():
        tree = parsed(ROOT / "tests" / file)
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {name.partition("[")[0] for name in names} <= tests, file
