"""The jobs: one module per command, each with SUMMARY (one line), Params (a frozen dataclass) and run(params).

A job's module is imported when its command is asked for, so its heavy imports (torch, matplotlib, gemmi, scipy) stand
inside `run`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

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
    "simulate": "polarice.jobs.simulate",
    "run": "polarice.jobs.workflow",
    "demo": "polarice.jobs.demo",
    "status": "polarice.jobs.status",
}


def load(name: str) -> ModuleType:
    """The module of job `name`; KeyError where there is no such job."""
    return importlib.import_module(JOBS[name])
