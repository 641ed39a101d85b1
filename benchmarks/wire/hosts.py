"""Hosts with a network link each: Linux network namespaces, or this machine's loopback.

A namespace is a host, with one Ethernet interface; the other end of its cable is
a port of a bridge, in a namespace of its own, so nothing appears in the network
of the machine itself. A token bucket (`tc … tbf`) at both ends of each cable
limits what the host sends and what it receives, as the cable of a real host would.
"""

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
from typing import NamedTuple

HOSTS = ("chief", "worker0", "worker1", "ps0", "ps1")
SUBNET = "10.78.0"
MTU = 1500  # bytes
LARGE_SEGMENT = 72 * 1024  # bytes; Linux makes segments of 64 KiB, headers come on top
HEADERS = 14 + 20 + 32  # bytes: Ethernet, IPv4, and TCP with its time stamps
CONGESTION = "cubic"  # Linux's default, whatever this machine's is
LATENCY = "50ms"  # the longest that a packet waits in a bucket's queue before it is dropped

_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


class Traffic(NamedTuple):
    """The TCP payload that a host has sent (`up`) and received (`down`) so far, in bytes."""

    up: int
    down: int


def bits_per_second(bandwidth: str) -> float:
    """Parses a bandwidth such as "100mbit".

    Raises:
      ValueError: it is not a number with one of tc's units.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", bandwidth)
    if not match or not float(match[1]):
        raise ValueError(
            f"bandwidth {bandwidth!r} is not a number with kbit, mbit or gbit, such as 100mbit, "
            "nor none"
        )
    return float(match[1]) * _UNITS[match[2]]


def payload(bytes: int, packets: int, **_) -> int:
    """What an interface has carried, without the headers of its packets.

    Where packets travel through the kernel as one large segment, it counts one packet
    with one header; so this is right whether they do or not. The links' limits
    always count every header.
    """
    return bytes - packets * HEADERS


def burst_bytes(bandwidth: str) -> int:
    """Size of the bucket: 1 ms of the link, or one of the kernel's large segments.

    What a bucket saves up while the link is idle passes at once, so it has to be
    little beside a step's bytes. But a large segment that does not fit would be cut
    into packets here, with the processor time of every host on the cores that all share: at
    100 Mb/s that was seen to take 70% of two cores. A network card does it by itself.
    """
    return max(LARGE_SEGMENT, int(bits_per_second(bandwidth) / 8 * 1e-3))


def why_not() -> str | None:
    """The reason why network namespaces cannot be made here, or None if they can be made."""
    missing = [tool for tool in ("ip", "tc") if not shutil.which(tool)]
    if missing:
        return f"{' and '.join(missing)} not found (package iproute2)"
    if os.geteuid():
        return "it takes root"
    name = f"tfps-wire-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return made.stderr.strip() or "ip netns add failed"
    _run("ip", "netns", "del", name)
    return None


_NUMBERS = itertools.count()


class Network:
    """All hosts on one bridge; a context manager that leaves nothing behind."""

    def __init__(self):
        self._prefix = f"tfps-wire-{os.getpid()}-{next(_NUMBERS)}-"
        self._made: list[str] = []

    def __enter__(self) -> "Network":
        try:
            self._namespace("switch")
            self._ip("switch", "link", "add", "bridge", "type", "bridge")
            self._ip("switch", "link", "set", "bridge", "up")
            for i, host in enumerate(HOSTS):
                self._connect(host, f"{SUBNET}.{i + 1}/24")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _namespace(self, host: str) -> None:
        name = self._prefix + host
        self._made.append(name)
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")

    def _connect(self, host: str, address: str) -> None:
        self._namespace(host)
        cable = ["type", "veth", "peer", "name", "eth0", "netns", self._prefix + host]
        self._ip("switch", "link", "add", host, *cable)
        self._ip("switch", "link", "set", host, "mtu", str(MTU), "master", "bridge", "up")
        self._ip(host, "link", "set", "eth0", "mtu", str(MTU), "up")
        self._ip(host, "addr", "add", address, "dev", "eth0")
        # By the route, because a namespace may not choose what the machine does not allow.
        route = [f"{SUBNET}.0/24", "dev", "eth0", "congctl", CONGESTION]
        self._ip(host, "route", "replace", *route)

    def _ip(self, host: str, *arguments: str) -> str:
        return _run("ip", "-n", self._prefix + host, *arguments)

    def limit(self, bandwidth: str) -> None:
        """Gives every host a link of the bandwidth, from now on; "none" is what the kernel can."""
        if bandwidth == "none":
            discipline = ["noqueue"]
        else:
            burst = str(burst_bytes(bandwidth))
            discipline = ["tbf", "rate", bandwidth, "burst", burst, "latency", LATENCY]
        for host in HOSTS:
            for at, device in ((host, "eth0"), ("switch", host)):
                place = ["dev", device, "root"]
                _run("tc", "-n", self._prefix + at, "qdisc", "replace", *place, *discipline)

    def unplug(self, host: str) -> None:
        """Sets a host's link down, so that the host vanishes without closing its connections."""
        self._ip("switch", "link", "set", host, "down")

    def plug(self, host: str) -> None:
        """Sets the link of an unplugged host up again."""
        self._ip("switch", "link", "set", host, "up")

    def command(self, host: str) -> list[str]:
        """The prefix of a command line that runs on the host."""
        return ["ip", "netns", "exec", self._prefix + host]

    def address(self, host: str, port: int) -> str:
        return f"{SUBNET}.{HOSTS.index(host) + 1}:{port}"

    @property
    def interface(self) -> str:
        return "eth0"

    def traffic(self) -> dict[str, Traffic]:
        """Bytes over each host's link, counted at the bridge, which receives what a host sends."""
        links = json.loads(self._ip("switch", "-s", "-j", "link"))
        counters = {link["ifname"]: link["stats64"] for link in links}
        return {
            h: Traffic(payload(**counters[h]["rx"]), payload(**counters[h]["tx"])) for h in HOSTS
        }

    def close(self) -> None:
        """Deletes the namespaces, and with them bridge, cables and limits."""
        for name in reversed(self._made):
            subprocess.run(
                ["ip", "netns", "del", name], capture_output=True, start_new_session=True
            )
        self._made = []


class Loopback:
    """All hosts are this machine: bandwidth has no limit, and bytes are not counted by host."""

    interface = "lo"

    def __enter__(self) -> "Loopback":
        return self

    def __exit__(self, *_) -> None:
        pass

    def limit(self, bandwidth: str) -> None:
        del bandwidth

    def command(self, host: str) -> list[str]:
        del host
        return []

    def address(self, host: str, port: int) -> str:
        """A free address for each call, since another program may hold the given port."""
        del host, port
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{sock.getsockname()[1]}"

    def traffic(self) -> None:
        return None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
