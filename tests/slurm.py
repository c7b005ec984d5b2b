"""A real Slurm on this machine, as root: munged, slurmctld and a slurmd for each logical node, ended with the block."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from polarice.runs.machine import left_by_ranks

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun")
CONFIG = """\
ClusterName=polarice
SlurmctldHost={host}
SlurmctldPort={ports[0]}
FirstJobId={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=3
InactiveLimit=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}
PartitionName=here Nodes=ALL Default=YES MaxTime=60 OverTimeLimit=0 State=UP
"""


def why_not() -> str:
    """What is missing for a Slurm of our own; "" where nothing is."""
    if os.geteuid() != 0:
        return "a Slurm of our own needs root"
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    return f"{', '.join(missing)} not installed (Debian: slurmctld slurmd slurm-client munge)" if missing else ""


@contextmanager
def slurm(folder: Path, nodes: int = 1, cores: int = 2) -> Iterator[dict[str, str]]:
    """Run Slurm with so many logical nodes of so many cores; gives the environment in which its programs find it.

    Raises RuntimeError with the daemons' last words where it does not come up within 30 s.
    """
    host = socket.gethostname()
    ports = _free_ports(nodes + 1)
    names = [f"node{number}" for number in range(1, nodes + 1)]
    lines = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} RealMemory=1000 State=UNKNOWN"
        for name, port in zip(names, ports[1:], strict=True)
    ]
    (folder / "state").mkdir(parents=True)
    first = secrets.randbelow(10**7) + 1000  # so that jobs of several runs of the tests differ
    config = CONFIG.format(first=first, host=host, ports=ports, folder=folder, nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(config)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    files = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={files['socket']}"]
    munge += [f"--{name}-file={files[name]}" for name in ("pid", "log", "seed")]
    before = set(left_by_ranks())
    with ExitStack() as running:
        running.enter_context(_daemon(munge, environment, folder))
        _wait_for(files["socket"].exists, "munged", folder)
        running.enter_context(_daemon(["slurmctld", "-D"], environment, folder))
        for name in names:
            running.enter_context(_daemon(["slurmd", "-D", "-N", name], environment, folder))
        up = ["sinfo", "--noheader", "--states=idle", "--format=%D"]
        _wait_for(lambda: _said(up, environment) == str(nodes), "slurmctld and slurmd", folder)
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--user=root"], env=environment, check=False, capture_output=True)
            _wait_for(lambda: _said(["squeue", "--noheader"], environment) == "", "the queue to empty", folder)
            for path in set(left_by_ranks()) - before:
                path.unlink(missing_ok=True)


def _said(words: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.strip() if done.returncode == 0 else "?"


@contextmanager
def _daemon(words: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with open(folder / f"{words[0]}.out", "ab") as out:
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(is_so, what: str, folder: Path, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            words = "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(folder.glob("*.out")))
            raise RuntimeError(f"waited {seconds:g} s for {what}:\n{words}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
