"""Two nodes that are played on one machine: network namespaces, joined by a line of a given rate and latency.

Linux and root, `ip`, `unshare` and `nsenter` (iproute2, util-linux), and /dev/net/tun. This file is also the line
itself, run as a script without any package: it makes the namespaces, prints their processes, and carries packets from
the one's TUN device to the other's until its standard input is closed. Nothing is left of it even after kill -9: all
runs in a namespace of processes whose first one is this script, and with that the kernel ends the others.

    link.py BYTES_PER_S LATENCY_S
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOSTS = ("10.77.0.1", "10.77.0.2")  # in namespaces of their own, where no other network is
TUN, SET_INTERFACE, IP_PACKETS = Path("/dev/net/tun"), 0x400454CA, 0x1001  # TUNSETIFF; IFF_TUN | IFF_NO_PI
PACKET_BYTES = 9000
QUEUE_S = 0.1  # a packet that would wait longer is dropped, as switches do
PROGRAMS = ("ip", "unshare", "nsenter", "hostname")
OVER_TCP = ("-genv", "MPIR_CVAR_CH4_NETMOD", "ofi", "-genv", "FI_PROVIDER", "tcp")  # no other network is seen there
APART = ("unshare", "--pid", "--mount-proc", "--fork", "--kill-child")
ENTER = ("nsenter", "--net", "--uts", "--target")
ON_NODE = """#!/bin/sh
# what ssh would do: [options] HOST COMMAND ...
while case "$1" in -*) true ;; *) false ;; esac; do shift; done
case "$1" in {hosts} esac
shift
exec {enter} "$node" sh -c "$*"
"""


def missing() -> str:
    """Why two nodes cannot be played here; "" where they can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not _launcher().exists():
        return "MPICH's mpiexec.hydra is not beside this Python; pip install 'polarice[mpi]'"
    if absent:
        return f"{', '.join(absent)} not found; they belong to iproute2 and util-linux"
    if not os.access(TUN, os.W_OK):
        return f"{TUN} is not there, or may not be used"
    tried = subprocess.run([*APART, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"namespaces may not be made here ({tried.stderr.strip()})"


@contextmanager
def two_nodes(bytes_per_s: float, latency_s: float, folder: Path) -> Iterator[list[str]]:
    """Words that start a rank on each of two nodes, which are there while the block runs; `folder` holds a script."""
    words = [*APART, sys.executable, "-I", "-S", __file__, f"{bytes_per_s:g}", f"{latency_s:g}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as line:
        assert line.stdin is not None and line.stdout is not None
        nodes = line.stdout.readline().split()
        if len(nodes) != len(HOSTS):
            raise OSError(f"two network namespaces could not be made (exit code {line.wait()})")
        script = Path(f"/proc/{line.pid}/task/{line.pid}/children").read_text().strip()
        on_node = folder.absolute() / "on_node.sh"
        hosts = " ".join(f"{host}) node={node} ;;" for host, node in zip(HOSTS, nodes, strict=True))
        on_node.write_text(ON_NODE.format(hosts=hosts, enter=" ".join(ENTER)))
        on_node.chmod(0o755)
        inside = ["nsenter", "--pid", "--mount", "--target", script, *ENTER, nodes[0]]
        launch = [str(_launcher()), "-launcher", "ssh", "-launcher-exec", str(on_node), *OVER_TCP]
        try:
            yield [*inside, *launch, "-hosts", ",".join(HOSTS), "-n", "2"]
        finally:
            line.stdin.close()
            on_node.unlink(missing_ok=True)


def _launcher() -> Path:
    return Path(sys.executable).with_name("mpiexec.hydra")


# -- the line ----------------------------------------------------------------------------------------------------------


def _node(number: int) -> tuple[int, subprocess.Popen[bytes]]:
    """A namespace with an address of its own: the end of its line, and the process that holds it."""
    here, there = HOSTS[number], HOSTS[1 - number]
    words = ["unshare", "--net", "--uts", "sh", "-c", f"hostname {here} && echo && exec cat > /dev/null"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    name, end = f"pol{os.getpid()}n{number}", os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, SET_INTERFACE, struct.pack("16sH", name.encode(), IP_PACKETS))
    subprocess.run(["ip", "link", "set", name, "netns", str(process.pid)], check=True)
    for line in (
        "link set lo up",
        f"link set {name} mtu {PACKET_BYTES} up",
        f"addr add {here} peer {there} dev {name}",
    ):
        subprocess.run(["nsenter", "--net", "--target", str(process.pid), "ip", *line.split()], check=True)
    return end, process


def _carry(ends: list[int], bytes_per_s: float, latency_s: float) -> None:
    """Take packets from each end to the other, until standard input is closed."""
    underway: list[deque[tuple[float, bytes]]] = [deque(), deque()]  # when each arrives
    free = [0.0, 0.0]  # when the line has sent all that it was given
    while True:
        first = min((queue[0][0] for queue in underway if queue), default=None)
        ready = select.select([0, *ends], [], [], None if first is None else max(0.0, first - time.monotonic()))[0]
        if 0 in ready:
            return
        now = time.monotonic()
        for side, end in enumerate(ends):
            while end in ready:
                try:
                    packet = os.read(end, PACKET_BYTES)
                except BlockingIOError:
                    break
                if free[side] < now + QUEUE_S:
                    free[side] = max(free[side], now) + len(packet) / bytes_per_s
                    underway[side].append((free[side] + latency_s, packet))
            while underway[side] and underway[side][0][0] <= now:
                with suppress(OSError):  # the other end is being taken down
                    os.write(ends[1 - side], underway[side].popleft()[1])


if __name__ == "__main__":
    nodes = [_node(number) for number in range(2)]
    print(*(process.pid for _, process in nodes), flush=True)
    with suppress(OSError):  # a line does not wait for the ranks to leave it a core
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    _carry([end for end, _ in nodes], float(sys.argv[1]), float(sys.argv[2]))
