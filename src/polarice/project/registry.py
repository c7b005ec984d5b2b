"""The jobs by name: one module per command, each with SUMMARY (one line), Params (a frozen dataclass) and run(params).

A job's module is imported when its command is asked for, so its heavy imports (torch, matplotlib, gemmi, scipy) stand
inside `run`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from polarice.cluster import launched
from polarice.project.params import Parameters
from polarice.project.state import working

JOBS: dict[str, str] = {
    "import": "polarice.jobs.import_",
    "motion": "polarice.jobs.motion",
    "ctf": "polarice.jobs.ctf",
    "pick": "polarice.jobs.pick",
    "extract": "polarice.jobs.extract",
    "align2d": "polarice.jobs.align2d",
    "class2d": "polarice.jobs.class2d",
    "sml": "polarice.jobs.sml",
    "deep2d": "polarice.jobs.deep2d",
    "initial3d": "polarice.jobs.initial3d",
    "class3d": "polarice.jobs.class3d",
    "refine3d": "polarice.jobs.refine3d",
    "reconstruct": "polarice.jobs.reconstruct",
    "select": "polarice.jobs.select",
    "star": "polarice.jobs.star",
    "mask": "polarice.jobs.mask",
    "postprocess": "polarice.jobs.postprocess",
    "map": "polarice.jobs.map",
    "simulate": "polarice.jobs.simulate",
    "run": "polarice.jobs.workflow",
    "doctor": "polarice.jobs.doctor",
    "example": "polarice.jobs.example",
    "demo": "polarice.jobs.demo",
    "status": "polarice.jobs.status",
    "serve": "polarice.web.command",
}


def load(name: str) -> ModuleType:
    """The module of job `name`; KeyError where there is no such job."""
    return importlib.import_module(JOBS[name])


def run(name: str, params: Parameters) -> None:
    """Run a job, its state written into its folder as it goes. Raises what the job raises."""
    launch = launched()
    folder = None if launch is not None and launch.rank else folder_of(params)
    with working(name, folder):
        load(name).run(params)


def folder_of(params: Parameters) -> Path | None:
    """The folder of a job; None where it has none."""
    named = getattr(params, "continue_", None)
    if named is not None:
        return Path(named) if Path(named).is_dir() else Path(named).parent
    folder = getattr(params, "o", None)
    return Path(folder) if folder is not None else None
