"""What a job finds installed: packages, PyTorch and its GPUs, MPI, and programs beside Polarice."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from polarice import __version__
from polarice.runs.machine import GIB, Finding
from polarice.runs.resources import CARDS

HELLO_S = 60.0  # that two ranks may take to meet
HELLO = """
from polarice.cluster import world
with world("doctor") as comm:
    found = comm.collect(comm.rank)
    if comm.rank == 0:  # lines of two ranks may run into each other
        print("ranks:", *found, flush=True)
"""
GPU_PAGE = "https://pytorch.org/get-started/locally"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox")


def look_at_installation(ranks: bool = True) -> Iterator[Finding]:
    """All findings about software, one after the other; ranks: whether to start two ranks."""
    yield look_at_versions()
    yield look_at_packages()
    yield from look_at_torch()
    yield from look_at_mpi(ranks)
    yield from look_at_programs()


def look_at_versions() -> Finding:
    """Polarice, Python and the system."""
    names = [f"polarice {__version__}", f"Python {platform.python_version()}"]
    for package in ("torch", "numpy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            names.append(f"{package} {importlib.metadata.version(package)}")
    return Finding("versions", "OK", ", ".join([*names, f"{platform.system()} {platform.machine()}"]))


def look_at_packages() -> Finding:
    """Whether every package that Polarice requires is there, new enough, and not too new."""
    try:
        required = importlib.metadata.requires("polarice") or []
        from packaging.requirements import Requirement
    except importlib.metadata.PackageNotFoundError:
        text = "polarice is run from its source, and what it requires is not looked at"
        return Finding("packages", "note", text, "pip install . in its folder")
    except ImportError:
        return Finding("packages", "problem", "packaging is missing", "pip install packaging")
    wrong, count = list[str](), 0
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return Finding("packages", "problem", "; ".join(wrong), "pip install --upgrade polarice, in its environment")
    return Finding("packages", "OK", f"all {count} that polarice requires")


def look_at_torch() -> Iterator[Finding]:
    """PyTorch's build, and whether each GPU that the system shows can be computed on."""
    try:
        import torch
    except Exception as error:
        text = f"cannot be loaded ({type(error).__name__}: {_first_line(str(error))})"
        yield Finding("PyTorch", "problem", text, f"install it anew: {GPU_PAGE}")
        return
    cards = sum(1 for _ in CARDS.glob("*"))
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield Finding("PyTorch", "OK", f"{torch.__version__}, built for {build}")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        if cards and not torch.version.cuda:
            text = f"{cards} in this machine, and PyTorch is built for the CPU alone"
            yield Finding("GPU", "problem", text, f"install PyTorch for CUDA: {GPU_PAGE}")
        elif cards and hidden is not None and not hidden.strip(", "):
            text = f"{cards} in this machine, all hidden by CUDA_VISIBLE_DEVICES"
            yield Finding("GPU", "note", text, "unset CUDA_VISIBLE_DEVICES to use them")
        elif cards:
            text = f"{cards} in this machine, and PyTorch cannot reach them"
            yield Finding("GPU", "problem", text, f"look at nvidia-smi: the driver must know CUDA {torch.version.cuda}")
        else:
            yield Finding("GPU", "OK", "none; jobs compute on the CPU")
        return
    for number in range(torch.cuda.device_count()):
        yield _look_at_card(number)
    if importlib.util.find_spec("pynvml") is None:
        yield Finding("GPU energy", "note", "is not counted", "pip install nvidia-ml-py")


def _look_at_card(number: int) -> Finding:
    """Whether a CUDA card multiplies matrices rightly, and takes the fused kernel."""
    import torch

    from polarice.align.fused import works_on

    device = torch.device("cuda", number)
    subject = f"GPU {number}"
    try:
        name = torch.cuda.get_device_properties(device).name
        free, total = torch.cuda.mem_get_info(device)
        ones = torch.ones(64, 64, device=device)
        right = bool(torch.all(ones @ ones == 64.0))
    except Exception as error:
        text = f"cannot be used ({_first_line(str(error))})"
        return Finding(
            subject, "problem", text, f"install a PyTorch that knows this card ({GPU_PAGE}), or --device cpu"
        )
    text = f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
    if not right:
        return Finding(subject, "problem", f"{text}: multiplies wrongly", "do not use it; give --device cpu")
    if reason := works_on(device):
        return Finding(subject, "note", f"{text}; no fused kernel: {reason}", "jobs work without it, some more slowly")
    return Finding(subject, "OK", f"{text}; fused kernel works")


def look_at_mpi(ranks: bool) -> Iterator[Finding]:
    """mpi4py, what starts ranks, and whether two of them meet."""
    launcher = next((found for name in ("mpirun", "mpiexec") if (found := shutil.which(name))), None)
    try:
        version = importlib.metadata.version("mpi4py")
    except importlib.metadata.PackageNotFoundError:
        remedy = "pip install 'polarice[mpi]', where a job is to use several GPUs or nodes"
        yield Finding("MPI", "note", "mpi4py is not installed: a job is one process", remedy)
        return
    if launcher is None:
        yield Finding(
            "MPI", "problem", f"mpi4py {version}, and no mpirun on PATH",
            "activate the environment, load the cluster's MPI module, or pip install mpich",
        )  # fmt: skip
        return
    yield Finding("MPI", "OK", f"mpi4py {version}; {launcher}")
    if ranks:
        yield greet(launcher)


def greet(launcher: str) -> Finding:
    """Whether two ranks that `launcher` starts find each other."""
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith(("PMI_", "OMPI_COMM", "PMIX_"))
    }
    words = [launcher, "-n", "2", sys.executable, "-c", HELLO]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=HELLO_S,
            env=environment,
            stdin=subprocess.DEVNULL,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        text = f"did not meet within {HELLO_S:.0f} s"
        return Finding("two ranks", "problem", text, "look at firewall and host name: `hostname` must resolve here")
    if done.returncode == 0 and re.search(r"^ranks: 0 1$", done.stdout, re.MULTILINE):
        return Finding("two ranks", "OK", "started, and found each other")
    said = " ".join((done.stderr or done.stdout).split())
    if "allow-run-as-root" in said:
        text = "Open MPI's mpirun does not start as root"
        return Finding("two ranks", "note", text, "work as a user, or put the environment's own mpirun first on PATH")
    if "not enough slots" in said:
        return Finding("two ranks", "note", "there is one core alone for Open MPI", "mpirun --oversubscribe")
    own = Path(sys.executable).with_name("mpirun")
    remedy = f"take the mpirun of mpi4py's own MPI ({own}), or build mpi4py with this one"
    return Finding("two ranks", "problem", f"ended with code {done.returncode}: {said[-200:]}", remedy)


def look_at_programs() -> Iterator[Finding]:
    """Programs that go well with Polarice, where they are found."""
    relion = shutil.which("relion_refine")
    if relion is None:
        yield Finding("RELION", "OK", "not on PATH; needed for nothing but comparisons")
    else:
        yield Finding("RELION", "OK", f"{_version_of(relion)} ({relion})")
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    yield Finding("browser", "OK", browser or "none on PATH; copy report.html, or its folder, to where one is")
    scheduler = next((name for name in ("sbatch", "qsub") if shutil.which(name)), None)
    if scheduler:
        system = {"sbatch": "slurm", "qsub": "pbs"}[scheduler]
        yield Finding("scheduler", "OK", f"{scheduler}: polarice cluster {system} writes scripts for it")


def _version_of(relion: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([relion, "--version"], capture_output=True, text=True, timeout=20, errors="replace")
        if found := re.search(r"version:?\s*(\S+)", done.stdout + done.stderr):
            return found[1]
    return "of unknown version"


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
