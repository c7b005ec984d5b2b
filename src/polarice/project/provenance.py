"""`job.json`: everything needed to run a job again, and to know what it ran on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polarice
from polarice.io.atomic import replacing
from polarice.project.inputs import records_of
from polarice.project.state import claimed
from polarice.types import InputError

NAME = "job.json"
_PACKAGES = ("torch", "numpy", "finufft", "cufinufft", "scipy", "mrcfile", "gemmi", "matplotlib", "pillow")


def write_job_json(
    folder: str | os.PathLike[str],
    job: str,
    params: dict[str, Any],
    command: str,
    *,
    inputs: Iterable[str | os.PathLike[str] | dict[str, Any]] = (),
    seed: int | None = None,
    more: dict[str, Any] | None = None,
) -> Path:
    """Write `folder`/job.json, atomically, and return its path.

    `params` is what `jobs.params.as_dict` gives (JSON's own types), `command` the line that runs the job again,
    `inputs` the files it read, or their records (`jobs.inputs` says what is kept of them, so that a later run can tell
    whether they are still the same). `more` is added as it is.
    """
    content = {
        "job": job,
        "command": command,
        "working_directory": os.getcwd(),
        "params": params,
        "seed": seed,
        "inputs": records_of(inputs, folder),
        "versions": versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **(more or {}),
    }
    path = Path(folder) / NAME
    with replacing(path, "w") as stream:
        stream.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
    claimed(Path(folder))
    return path


def read_job_json(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_job_json` wrote; InputError where the folder holds no job, or the file cannot be understood."""
    path = Path(folder) / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; {folder} is not the folder of a job to continue") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); run the job again in a new folder") from error
    if not isinstance(content, dict) or not isinstance(content.get("params"), dict):
        raise InputError(f"{path}: holds no parameters; run the job again in a new folder")
    return content


def inputs_of(job: dict[str, Any], folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a job.json's input files. Raises InputError where they are none."""
    records = job.get("inputs", [])
    if not isinstance(records, list) or not all(_is_record(each) for each in records):
        raise InputError(f"{Path(folder) / NAME}: inputs that make no sense; run the job again in a new folder")
    return records


def _is_record(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("path"), str) and "size" in value


def versions() -> dict[str, str]:
    """Versions of the program and the libraries that are installed, and the machine's processor, memory and GPU."""
    found = {"polarice": polarice.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["system"] = f"{platform.system()} {platform.release()} ({platform.machine()})"
    found["CPU"] = f"{_processor()}, {os.cpu_count()} logical cores"
    if memory := _memory_GiB():
        found["memory"] = f"{memory:.0f} GiB"
    found["GPU"] = _gpu()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_GiB() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return 0.0


def _gpu() -> str:
    """Names of the CUDA devices; torch is asked only where the job has it loaded already."""
    torch = sys.modules.get("torch")
    if torch is None:
        return "not asked"
    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
