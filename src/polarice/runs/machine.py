"""What a job finds on this machine: cores, memory, disks, locks, clocks and counters, and what is to be mended."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polarice.project.energy import Meter
from polarice.project.folder_lock import alone
from polarice.types import InputError

Verdict = Literal["OK", "note", "problem"]
GIB = 1 << 30
LEAST_MEMORY, USUAL_MEMORY = 2 * GIB, 8 * GIB  # a job of a few hundred thousand particles needs the second
LEAST_SHARED = 256 << 20  # bytes of /dev/shm; containers begin with 64 MiB, which MPI libraries exhaust
LEAST_SPACE = 5 * GIB
LEAST_FILES = 1024  # stacks and processes that a job holds open
CLOCK_S = 2.0  # between this machine and the file server; `run` takes files younger than 10 s for unfinished ones
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    text: str
    remedy: str = ""


def look_at_machine(
    threads: int | None, folder: Path, scratch: Path | None, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """All findings about the hardware and the system, one after the other.

    threads      CPU threads that jobs are to be given; None: all that this process may use
    folder       where jobs are to write
    scratch      a fast disk for prepared images; None: none
    """
    yield look_at_cores(threads, environment)
    yield from look_at_thread_limits(threads or usable_cores(), environment)
    yield look_at_memory()
    yield look_at_shared_memory()
    yield look_at_open_files()
    yield from look_at_folder(folder)
    yield look_at_scratch(scratch or Path(environment.get("TMPDIR") or tempfile.gettempdir()))
    yield look_at_energy()


def usable_cores() -> int:
    """Cores that this process may run on: what `--threads` defaults to."""
    return len(os.sched_getaffinity(0))


def cgroup_cores(root: Path = CGROUP) -> float | None:
    """Cores' worth of time that this process's control group is granted (version 2 or 1); None where it is not held."""
    for folder in _groups(root, "cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                return int(quota) / int(period)
        with suppress(OSError, ValueError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                return quota_us / int((folder / "cpu.cfs_period_us").read_text())
    return None


def cgroup_memory(root: Path = CGROUP) -> int | None:
    """Bytes that this process's control group, or one above it, may take; None where none is held."""
    found = []
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                found.append(int((folder / name).read_text()))
    held = [limit for limit in found if limit < 1 << 60]  # version 1 says "none" by a number beyond all memory
    return min(held, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and those above it, the innermost first; then the root."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            base = root / controller if controllers else root
            inner = base / path.lstrip("/")
            yield from (each for each in (inner, *inner.parents) if each.is_relative_to(base))
    yield from (root, root / controller)


def look_at_cores(threads: int | None, environment: Mapping[str, str], quota: float | None = None) -> Finding:
    """The cores that there are, those this process may use, and what a control group or Slurm grants of them."""
    there, usable = os.cpu_count() or 1, usable_cores()
    quota = cgroup_cores() if quota is None else quota
    text = f"{usable} of {there} logical cores may be used"
    wanted = threads or usable
    if threads and threads > usable:
        return Finding("cores", "problem", f"{text}; {threads} threads would share them", f"give --threads {usable}")
    if quota is not None and quota < wanted:
        held = f"{text}; the control group grants the time of {quota:g}"
        return Finding("cores", "problem" if threads else "note", held, f"give --threads {max(1, int(quota))}")
    granted = environment.get("SLURM_CPUS_PER_TASK", "")
    if granted.isdigit() and int(granted) < wanted:
        return Finding("cores", "note", f"{text}; Slurm grants {granted} to a task", f"give --threads {granted}")
    return Finding("cores", "OK", f"{text}; --threads is {wanted}")


def look_at_thread_limits(threads: int, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Variables of OpenMP that stand against --threads."""
    limit = environment.get("OMP_THREAD_LIMIT", "")
    if limit.isdigit() and int(limit) < threads:
        remedy = f"unset OMP_THREAD_LIMIT, or give --threads {limit}"
        yield Finding("threads", "problem", f"OMP_THREAD_LIMIT={limit} is less than {threads} threads", remedy)
        return
    bound = [
        name for name in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY") if environment.get(name)
    ]
    bound = [name for name in bound if environment[name].lower() not in ("false", "disabled", "none")]
    if bound and threads > 1:
        said = ", ".join(f"{name}={environment[name]}" for name in bound)
        yield Finding("threads", "note", f"{said} may put all threads on one core", f"unset {' '.join(bound)}")
        return
    given = environment.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) != threads:
        text = f"OMP_NUM_THREADS={given} is not heeded: jobs take {threads} threads"
        yield Finding("threads", "note", text, f"give --threads {given} where that is meant")
        return
    yield Finding("threads", "OK", f"nothing stands against {threads} threads")


def look_at_memory(limit: int | None = None) -> Finding:
    """Memory of the machine, what is free of it, and what a control group or `ulimit -v` allow."""
    sizes = _meminfo()
    total, free = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    limit = cgroup_memory() if limit is None else limit
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    text = f"{total / GIB:.1f} GiB, of which {free / GIB:.1f} are free"
    if soft != resource.RLIM_INFINITY and soft < USUAL_MEMORY:
        return Finding("memory", "problem", f"{text}; ulimit -v allows {soft / GIB:.1f}", "ulimit -v unlimited")
    room = min(free, limit or free)
    if limit is not None and limit < total:
        text += f"; the control group may take {limit / GIB:.1f}"
    if room < LEAST_MEMORY:
        return Finding(
            "memory", "problem", text, f"end other programs, or ask for more: {LEAST_MEMORY // GIB} GiB are the least"
        )
    if limit is not None and limit < total:
        given = max(0.5, limit / GIB - 1)
        return Finding("memory", "note", text, f"give --memory {given:.1f}: jobs reckon with all of the machine's")
    if room < USUAL_MEMORY:
        return Finding("memory", "note", text, "large data sets need --memory, or --scratch on a fast disk")
    return Finding("memory", "OK", text)


def _meminfo() -> dict[str, int]:
    """What /proc/meminfo says, in bytes; empty where it is not there."""
    found = dict[str, int]()
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            number = rest.split()[:1]
            found[name] = int(number[0]) * 1024 if number else 0
    return found


def look_at_shared_memory(path: Path = Path("/dev/shm")) -> Finding:
    """Room in /dev/shm, by which ranks and processes of a node talk."""
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        remedy = "mount a tmpfs there; without it ranks of one node cannot talk"
        return Finding("shared memory", "problem", f"{path}: {error.strerror}", remedy)
    text = f"{free / GIB:.2g} GiB free in {path}"
    if free < LEAST_SHARED:
        return Finding("shared memory", "problem", text, "start the container with --shm-size=1g, or clear it")
    if left := left_by_ranks(path):
        held = sum(each.stat().st_size for each in left) / GIB
        text += f"; {len(left)} segments of killed MPI ranks hold {held:.2g}"
        return Finding("shared memory", "note", text, f"where no rank is being started: rm {path}/mpich_shm_*")
    return Finding("shared memory", "OK", text)


def left_by_ranks(path: Path = Path("/dev/shm")) -> list[Path]:
    """Shared memory of MPICH's ranks, this user's, that no process has open: what killed ranks leave."""
    ours = {str(each): each for each in path.glob("mpich_shm_*") if each.stat().st_uid == os.getuid()}
    if not ours:
        return []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            for line in maps.read_text(errors="replace").splitlines():
                ours.pop(line[line.find("/") :] if "/" in line else "", None)
    return sorted(ours.values())


def look_at_open_files() -> Finding:
    """How many files a process may hold open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < LEAST_FILES:
        remedy = f"ulimit -n {LEAST_FILES if hard < 0 else min(max(hard, soft), 65536)}"
        return Finding("open files", "note", f"{soft} at once", remedy)
    return Finding("open files", "OK", f"{soft if soft >= 0 else 'any number'} at once")


def look_at_folder(folder: Path) -> Iterator[Finding]:
    """Whether jobs can write below a folder, lock it, rename in it, and trust its clock."""
    shown = folder.absolute()
    try:
        with tempfile.TemporaryDirectory(prefix=".polarice-doctor-", dir=folder) as inner:
            yield _space("working folder", shown, _mount_of(shown))
            yield _look_at_locks(Path(inner), _mount_of(shown))
            yield _look_at_clock(Path(inner))
    except OSError as error:
        remedy = "go to a folder that you may write to, or mend its permissions"
        yield Finding("working folder", "problem", f"{shown}: {error.strerror}", remedy)


def _look_at_locks(folder: Path, mount: tuple[str, str]) -> Finding:
    """Whether a second process is kept out of a folder: without that, two jobs may write into one."""
    kind, options = mount
    if kind == "lustre" and "localflock" in options:
        remedy = "have it mounted with -o flock, and never start a job twice meanwhile"
        return Finding("file locks", "problem", "Lustre with localflock: two nodes can take the same folder", remedy)
    target = folder / "job"
    target.mkdir()
    try:
        with alone(target):
            noted = (target / ".job.at_work").exists()
            with alone(target):
                pass
    except InputError:
        where = f" ({kind})" if kind else ""
        if noted:
            text = f"the file system{where} has none: a note in the folder stands in for them"
            return Finding(
                "file locks", "note", text, "have it mounted with locks; of a lost node remove .NAME.at_work"
            )
        return Finding("file locks", "OK", f"a second job is kept out of a folder{where}")
    text = "a second job is not kept out of a folder"
    return Finding("file locks", "problem", text, "work on a file system with locks, and never start a job twice")


def _look_at_clock(folder: Path) -> Finding:
    """How far the file server's clock is from this machine's."""
    probe = folder / "clock"
    before = time.time()
    probe.write_bytes(b"")
    apart = probe.stat().st_mtime - before
    if abs(apart) > CLOCK_S:
        text = f"the file server's is {apart:+.0f} s from this machine's"
        return Finding("clock", "problem", text, "let both keep time by NTP (timedatectl set-ntp true)")
    return Finding("clock", "OK", "files have this machine's time")


def look_at_scratch(folder: Path) -> Finding:
    """Room on the disk for temporary files, or that `--scratch` is to name."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("scratch", "problem", f"{folder} cannot be written", "set TMPDIR, or give another --scratch")
    return _space("scratch", folder.absolute(), _mount_of(folder.absolute()))


def _space(subject: str, folder: Path, mount: tuple[str, str]) -> Finding:
    free = shutil.disk_usage(folder).free
    kind = mount[0]
    text = f"{free / GIB:.0f} GiB free in {folder}" + (f" ({kind})" if kind else "")
    if free < LEAST_SPACE:
        return Finding(
            subject, "problem" if free < LEAST_SPACE // 10 else "note", text, "free some space there, or go elsewhere"
        )
    if subject == "scratch" and kind in ("tmpfs", "ramfs"):
        return Finding(
            subject, "note", f"{text}: this is memory", "name a folder on a disk with --scratch or --copy-to"
        )
    return Finding(subject, "OK", text)


def _mount_of(folder: Path) -> tuple[str, str]:
    """(kind, options) of the file system that a folder is on; ("", "") where it is not known."""
    best, found = -1, ("", "")
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, kind, options = line.split()[:4]
            point = point.replace("\\040", " ")
            if folder.is_relative_to(point) and len(point) > best:
                best, found = len(point), (kind, options)
    return found


def look_at_energy() -> Finding:
    """Whether reports can state measured energy."""
    energy = Meter(node=True, card=None).energy()
    if energy.measured:
        return Finding("energy", "OK", f"measured: {', '.join(energy.measured)}")
    remedy = "as root: chmod a+r /sys/class/powercap/intel-rapl*/energy_uj, where the processor has them"
    return Finding("energy", "note", "no counter of the processors can be read; reports estimate", remedy)
