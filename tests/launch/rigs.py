"""Launchers as tests run them: as a process of their own, with small programs as tasks."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

from benchmarks.wire import hosts

ROOT = pathlib.Path(__file__).parent.parent.parent

# What the tests' programs begin with.
PRELUDE = """
import json, os, signal, socket, subprocess, sys, time
config = json.loads(os.environ["TF_CONFIG"])
role, index = config["task"]["type"], config["task"]["index"]
here = os.path.dirname(os.path.abspath(__file__))
lives = os.path.join(here, f"{role}-{index}.lives")
with open(lives, "a") as f:
    f.write(f"{os.getpid()}\\n")
life = len(open(lives).readlines())  # 1 in the first life of the task
def wait_for(name, seconds=60):
    end = time.monotonic() + seconds
    while not os.path.exists(os.path.join(here, name)):
        if time.monotonic() > end:
            sys.exit(f"no {name}")
        time.sleep(0.05)
def touch(name):
    open(os.path.join(here, name), "w").close()
def serve_until_term():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(300)
"""


class Run:
    """One run of a launcher.

    Attributes:
      out: list of the lines on standard output so far.
      err: likewise on standard error.
    """

    def __init__(self, command: list[str], cwd: pathlib.Path, environ: dict[str, str]):
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, lines):
        for line in stream:
            lines.append(line.decode("utf-8", "replace").rstrip("\n"))

    def wait(self, timeout=60):
        """The exit code, when all output is read."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(5)
        return code

    def saw(self, pattern, timeout=30):
        """Waits for a line on either stream."""
        deadline = time.monotonic() + timeout
        while True:
            for line in [*self.out, *self.err]:
                if re.search(pattern, line):
                    return line
            assert time.monotonic() < deadline, (pattern, self.out, self.err)
            assert self.process.poll() is None or deadline - time.monotonic() > timeout - 2, (
                pattern,
                self.out,
                self.err,
            )
            time.sleep(0.05)

    def end(self):
        """Ends what is left; the agents then end by themselves."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Local:
    """`launch local`."""

    name = "local"
    flags: tuple[str, ...] = ("--grace=3", "--settle=0.5")
    prefix: tuple[str, ...] = ()
    hosts = ("localhost",)

    def command(self, *flags, program):
        return [
            *self.prefix,
            *(sys.executable, "-m", "launch", self.name, *self.flags, *flags, "--", *program),
        ]


def why_no_ssh():
    """Why hosts with sshd cannot be made here, or None."""
    for tool in ("ssh", "ssh-keygen", "rsync"):
        if not shutil.which(tool):
            return f"{tool} not found (packages openssh-client, rsync)"
    if not shutil.which("sshd", path="/usr/sbin:" + os.environ["PATH"]):
        return "sshd not found (package openssh-server)"
    return hosts.why_not()


class Ssh(Local):
    """`launch ssh` to hosts that are network namespaces, each with an sshd of its own.

    `worker0` and `ps0` are as they should be; `worker1` does not know the user's key, and `ps1`
    shows another host key than the one that is known.
    """

    name = "ssh"
    hosts = ("worker0", "ps0")

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._stack = contextlib.ExitStack()
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self):
        self.network = self._stack.enter_context(hosts.Network())
        self.prefix = tuple(self.network.command("chief"))
        os.makedirs("/run/sshd", exist_ok=True)  # sshd wants it for its unprivileged child.
        for key in ("user", "stranger", "host", "impostor"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key], check=True
            )
        public = (self.folder / "host.pub").read_text().split()[:2]
        known, config = [], []
        for host in hosts.HOSTS[1:]:
            address = self.network.address(host, 0).rpartition(":")[0]
            known.append(f"{address} {' '.join(public)}")
            config.append(f"Host {host}\n  HostName {address}\n")
            self._serve(host, address)
        (self.folder / "known_hosts").write_text("\n".join(known) + "\n")
        config.append(
            f"Host *\n  User root\n  IdentityFile {self.folder}/user\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n  GlobalKnownHostsFile none\n"
        )
        (self.folder / "config").write_text("".join(config))
        (self.folder / "two").write_text("worker0\nps0\n")
        self.flags = (f"--ssh=ssh -F {self.folder}/config", *Local.flags)

    def _serve(self, host, address):
        authorized = self.folder / f"{host}.keys"
        shutil.copy(self.folder / ("stranger.pub" if host == "worker1" else "user.pub"), authorized)
        key = self.folder / ("impostor" if host == "ps1" else "host")
        config = self.folder / f"{host}.sshd"
        config.write_text(
            f"ListenAddress {address}\nHostKey {key}\nAuthorizedKeysFile {authorized}\n"
            "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        )
        log = self._stack.enter_context((self.folder / f"{host}.log").open("wb"))
        daemon = subprocess.Popen(
            [*self.network.command(host), "/usr/sbin/sshd", "-D", "-e", "-f", config],
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        self._stack.callback(daemon.wait)
        self._stack.callback(daemon.kill)
        deadline = time.monotonic() + 10
        while b"listening" not in (self.folder / f"{host}.log").read_bytes():
            assert time.monotonic() < deadline, (self.folder / f"{host}.log").read_text()
            time.sleep(0.05)

    def command(self, *flags, program):
        if not any(flag.startswith("--hosts=") for flag in flags):
            flags = (f"--hosts={self.folder}/two", *flags)
        return super().command(*flags, program=program)

    def close(self):
        self._stack.close()


def living(folder: pathlib.Path) -> list[int]:
    """Processes that the tests' programs have started in a folder, and that still live."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode().replace("\0", " ")
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if str(folder) in command and " -m launch " not in command and state != "Z":
            found.append(int(path.name))
    return found


def version(python: pathlib.Path) -> str:
    """The version of a Python, such as "3.9.18"; empty if it does not run."""
    command = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
