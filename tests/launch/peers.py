"""A program for every task: the chief reaches all others at their addresses, and lets them go.

Usage: peers.py FOLDER [ROLE INDEX DEED]...   What a task does beyond that is its deed:
  a number: it exits with that code at once      hold: it waits for ever
  tell: it notes SIGTERM, and ends with 143      deaf: it notes SIGTERM, and goes on
  once-N: it kills itself by signal N, once      child: it starts a grandchild that nobody owns
Each start is noted in FOLDER. Only the standard library is used.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

LIMIT = 60.0  # s that any of it may take


def note(name: str, text: str = "") -> None:
    with (FOLDER / name).open("a") as f:
        f.write(f"{text or os.getpid()}\n")


def on_term(deaf: bool) -> None:
    def noted(signum, frame):
        note(f"{ROLE}-{INDEX}.term")
        if not deaf:
            os._exit(143)

    signal.signal(signal.SIGTERM, noted)


def do(deed: str) -> None:
    if deed.isdigit():
        sys.exit(int(deed))
    if deed in ("tell", "deaf"):
        on_term(deed == "deaf")
        note(f"{ROLE}-{INDEX}.ready")
        time.sleep(LIMIT)
    if deed == "hold":
        note(f"{ROLE}-{INDEX}.ready")
        time.sleep(LIMIT)
    if deed.startswith("once-") and len((FOLDER / f"{ROLE}-{INDEX}").read_text().split()) == 1:
        os.kill(os.getpid(), int(deed.removeprefix("once-")))
    if deed == "child":
        program = "import os, time; os.setsid(); os.fork() and os._exit(0); time.sleep(60)"
        subprocess.Popen([sys.executable, "-c", program, str(FOLDER)])
        note(f"{ROLE}-{INDEX}.ready")
        time.sleep(LIMIT)


def lead(cluster: dict) -> None:
    """Reaches every other task, and tells it that the job is done."""
    deadline = time.monotonic() + LIMIT
    for address in [a for role in ("ps", "worker") for a in cluster.get(role, ())]:
        while True:
            try:
                sock = socket.create_connection(split(address), timeout=2)
                sock.sendall(b"done")
                assert sock.recv(3) == b"yes"
                break
            except OSError:
                assert time.monotonic() < deadline, f"{address} does not answer"
                time.sleep(0.1)
        print(f"reached {address}", flush=True)


def serve(address: str) -> None:
    """Waits at the task's own address until the job is done."""
    server = socket.create_server((split(address)[0], split(address)[1]), reuse_port=True)
    server.settimeout(LIMIT)
    while True:
        sock = server.accept()[0]
        if sock.recv(4) == b"done":  # A probe sends nothing.
            sock.sendall(b"yes")
            return


def split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    CONFIG = json.loads(os.environ["TF_CONFIG"])
    ROLE, INDEX = CONFIG["task"]["type"], CONFIG["task"]["index"]
    FOLDER, DEEDS = pathlib.Path(sys.argv[1]), sys.argv[2:]
    note(f"{ROLE}-{INDEX}")
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    print(f"GPUs {gpus}; node {os.environ.get('SLURMD_NODENAME')}", flush=True)
    for role, index, deed in zip(DEEDS[::3], DEEDS[1::3], DEEDS[2::3], strict=True):
        if (role, index) == (ROLE, str(INDEX)):
            do(deed)
    if ROLE == "chief":
        lead(CONFIG["cluster"])
    else:
        serve(CONFIG["cluster"][ROLE][INDEX])
