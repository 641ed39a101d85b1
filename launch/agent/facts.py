"""What a host is: versions, GPUs, cores, and whether the program is there."""

from __future__ import annotations

import importlib.machinery
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

# s for nvidia-smi, which wakes up each GPU whose persistence mode is off, for up to 3 s. The agent
# meanwhile does not hear the launcher, and gives it up after 20 s.
_SMI = 15.0


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Returns what the launcher checks before it starts anything."""
    names, failure = gpus()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "tensorflow": version_of("tensorflow"),
        "hostname": socket.gethostname(),
        "missing": missing(request["argv"], request["folder"], request["environ"]),
        "gpus": names,
        "gpus_failure": failure,
        "gpus_numbered": "CUDA_VISIBLE_DEVICES" not in os.environ,
        "cores": sorted(os.sched_getaffinity(0)),
        "nodes": numa_nodes(),
        "unresolved": [name for name in request.get("addresses", ()) if not resolves(name)],
    }


def version_of(package: str) -> str | None:
    """Returns the version of an installed package, without importing it, or None."""
    try:
        from importlib import metadata

        return metadata.version(package)
    except ImportError:  # The package is missing, or this is Python 3.7, which has no `metadata`.
        return None


def resolves(address: str) -> bool:
    """Returns whether this host knows a name or address."""
    try:
        return bool(socket.getaddrinfo(address, None))
    except OSError:
        return False


def is_python(word: str) -> bool:
    """Returns whether a command is a Python."""
    return re.match(r"python[\d.]*$", os.path.basename(word)) is not None


def missing(argv: list[str], folder: str, environ: dict[str, str]) -> str | None:
    """Returns why a command cannot be started on this host, or None."""
    if not os.path.isdir(folder):
        return f"there is no folder {folder}"
    path = environ.get("PATH", os.environ.get("PATH", os.defpath))
    if os.sep in argv[0]:
        found = os.path.join(folder, argv[0])
        if not (os.path.isfile(found) and os.access(found, os.X_OK)):
            return f"there is no program {argv[0]}"
    elif not shutil.which(argv[0], path=path):
        return f"there is no program {argv[0]} in PATH"
    return missing_in_python(argv, folder, environ) if is_python(argv[0]) else None


def missing_in_python(argv: list[str], folder: str, environ: dict[str, str]) -> str | None:
    """Returns why a Python would not find what `argv` says, or None."""
    options = iter(argv[1:])
    for word in options:
        if word == "-m":
            return missing_module(next(options, ""), folder, environ)
        if word in ("-W", "-X"):
            next(options, None)
        elif word.startswith("-"):
            if "c" in word or word == "-":
                return None
        else:
            found = os.path.exists(os.path.join(folder, word))
            return None if found else f"there is no file {word} in {folder}"
    return None


def missing_module(name: str, folder: str, environ: dict[str, str]) -> str | None:
    """Returns why `python -m name` would not find the module, which is not imported, or None."""
    given = environ.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")).split(os.pathsep)
    path = [folder] + [os.path.join(folder, p) for p in given if p] + [p for p in sys.path if p]
    parts, spec = name.split("."), None
    for i in range(len(parts)):
        spec = found_spec(".".join(parts[: i + 1]), path)
        if spec is None:
            return "there is no module {}".format(".".join(parts[: i + 1]))
        path = list(spec.submodule_search_locations or ())
    is_package = spec is not None and spec.submodule_search_locations is not None
    if is_package and found_spec(name + ".__main__", path) is None:
        return f"the package {name} has no __main__.py"
    return None


def found_spec(name: str, path: list[str]) -> Any:
    """Returns where a module is, on a path, or None; nothing is imported."""
    importlib.machinery.PathFinder.invalidate_caches()
    finders: list = [importlib.machinery.PathFinder, *sys.meta_path]
    for finder in finders:
        try:
            spec = finder.find_spec(name, path)
        except Exception:  # A finder that some package has installed; nobody knows what it raises.
            spec = None
        if spec is not None:
            return spec
    return None


def gpus() -> tuple[list[str], str | None]:
    """Returns the names of this host's GPUs, as CUDA_VISIBLE_DEVICES takes them.

    They are the variable's own, or the numbers of `nvidia-smi`.

    Returns:
      The names, and why they could not be found out although there is an `nvidia-smi`, or None.
    """
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [n.strip() for n in allowed.split(",") if n.strip() not in ("", "-1")], None
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=_SMI,
        )
    except OSError:
        return [], None
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi did not end within {_SMI:g} s"
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode == 0 or "No devices were found" in said:
        return said.split() if done.returncode == 0 else [], None
    line = " ".join(said.split()) or "it said nothing"
    return [], f"nvidia-smi ended with exit code {done.returncode}: {line}"


def numa_nodes(folder: str = "/sys/devices/system/node") -> list[list[int]]:
    """Returns the cores of each NUMA node that this process may use."""
    allowed, found = os.sched_getaffinity(0), []
    try:
        names = sorted((n for n in os.listdir(folder) if re.match(r"node\d+$", n)), key=len)
    except OSError:
        names = []
    for name in names:
        with open(os.path.join(folder, name, "cpulist")) as f:
            cores = sorted(allowed & set(cores_of(f.read())))
        if cores:
            found.append(cores)
    return found or [sorted(allowed)]


def cores_of(text: str) -> Iterator[int]:
    """Yields the numbers of a list such as "0-3,8"."""
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            yield from range(int(first), int(last or first) + 1)
