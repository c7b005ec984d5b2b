"""Runs and their folders: which folder may be written to, and going on with a run that stopped."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from polarice.io.atomic import naming_target
from polarice.project import state
from polarice.project.folder_lock import alone
from polarice.project.inputs import is_same, located
from polarice.project.outputs import KEY, Outputs
from polarice.project.params import RESULTS, Option, as_dict, command_line, from_dict, options_of
from polarice.project.provenance import NAME, inputs_of, read_job_json, write_job_json
from polarice.project.registry import JOBS
from polarice.project.usage import USAGE_NAME
from polarice.runs.particle_job import ParticleJob
from polarice.types import InputError

_ITERATION = re.compile(r"run_it(\d{3,})_")
_REPORT = "report.html"
FILES = (_REPORT, "history.jsonl", USAGE_NAME, *state.FILES)  # of a run, beside those of its iterations
FINAL = {  # of a run that ends with maps
    "refine3d": (
        "run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc", "run_fsc.star",
    ),
    "class3d": ("agreement.json", "run_stable_data.star"),
}  # fmt: skip
_OUTPUT = re.compile(
    r"report_.*\.png|class\d{3,}(\.star)?|run_data\.star|run_class\d{3}\.mrc|align2d|sml|seed\d+"
)  # of some
_LEFT_OVER = re.compile(r"\.(.+)\.tmp-\d+")  # of a file that a kill cut off

_CHANGED = "changed since the run in {} began; start anew with --o another folder"
P = TypeVar("P", bound=ParticleJob)


def go_on_command(job: str, folder: Path) -> str:
    """The line that goes on with the run in `folder`."""
    return shlex.join(["polarice", job, "--continue", str(folder)])


def require_free(job: str, folder: Path, inputs: Iterable[Any] = ()) -> dict[str, Any]:
    """The record of outputs for job.json. Raises InputError where `folder` holds a run, of ours or of another program,
    and where inputs or files that are not of such a job would be written over; nothing is written yet."""
    another = "choose another folder with --o"
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        names = []
    except OSError as error:
        why = "this is a file, not a folder for results" if os.path.isfile(folder) else f"no folder ({error.strerror})"
        raise InputError(f"{folder}: {why}; {another}") from error
    ours = _job_of(folder)
    if any(map(_ITERATION.match, names)):
        remedy = f", or go on with {go_on_command(job, folder)}" if ours == job else ""
        raise InputError(f"{folder}: holds a run already; {another}{remedy}")
    if ours is not None and ours != job:
        raise InputError(f"{folder}: holds the results of a job ({ours}); {another}")
    return Outputs(
        job, folder, (*FILES, *FINAL.get(job, ())), loose=tuple(filter(_OUTPUT.fullmatch, names))
    ).require_free(inputs)


def _job_of(folder: Path) -> str | None:
    """The job that left a job.json in `folder`."""
    if not (folder / NAME).exists():
        return None
    try:
        return str(read_job_json(folder).get("job"))
    except InputError:
        return "of some kind"


def continued(job: str, params: P) -> P:
    """As `saved`; raises InputError too where all iterations are done."""
    params = saved(job, params)
    _require_iterations_left(job, params)
    return params


def saved(job: str, params: P) -> P:
    """The parameters of the run that `params.continue_` names; those that `may_change` says may be given anew.

    Raises InputError where there is no such run, its input has changed, or another parameter is asked to change.
    """
    named = params.continue_
    assert named is not None
    if not os.path.exists(named):
        raise InputError(f"--continue {named}: no such file or folder; give the folder of the run, or a file of it")
    folder = named if named.is_dir() else named.parent
    saved = read_job_json(folder)
    if not isinstance(saved.get("job"), str) or saved["job"] not in JOBS:
        raise InputError(f"{folder / NAME}: does not say of which job it is; start anew")
    if saved.get("job") != job:
        raise InputError(f"{folder}: this is a run of {saved.get('job')}; go on with polarice {saved.get('job')}")
    try:
        old = replace(from_dict(type(params), saved["params"]), o=folder)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, InputError) as error:
        raise InputError(f"{folder / NAME}: parameters that make no sense ({error}); start anew") from error
    kept = inputs_of(saved, folder)[:1]
    table = getattr(params, "particles", None)
    if kept and table is not None and table != old.particles and is_same(kept[0], table):
        old = replace(old, particles=table)  # where it lies now
        kept[0]["path"] = str(table)
    _require_same(params, old)
    old = replace(old, **_located_table(old, folder, saved))
    changing = [each.field for each in options_of(params) if may_change(each)]
    given = {name: getattr(params, name) for name in changing if getattr(params, name) not in (None, "auto")}
    return replace(old, continue_=named, **given)


def may_change(option: Option) -> bool:
    """Whether it may be given anew to a run that goes on."""
    return option.renewable or (option.resource and option.path is not RESULTS)


def _require_same(params: ParticleJob, old: ParticleJob) -> None:
    for each in options_of(type(params)):
        value, kept = getattr(params, each.field), getattr(old, each.field)
        same = value == kept or (each.field == "o" and value.resolve() == kept.resolve())
        if (
            may_change(each)
            or each.field == "continue_"
            or same
            or value == (None if each.positional else each.default)
        ):
            continue
        given = f"{each.flag} {value}"
        if each.kind is bool:
            given, kept = (each.flag if yes else f"--no-{each.flag[2:]}" for yes in (value, kept))
        message = f"{given}: a run that goes on keeps what it began with ({kept}); leave this out, or start anew"
        raise InputError(message)


def _located_table(old: ParticleJob, folder: Path, saved: dict[str, Any]) -> dict[str, Any]:
    """The table of particles where the project has been moved. Raises InputError where it is gone, or another one."""
    kept = inputs_of(saved, folder)[:1]
    if not kept:
        return {}
    where, named = located(kept[0], folder), kept[0]["path"]
    if where is not None:
        return {} if where == Path(old.particles) else {"particles": where}
    if not os.path.exists(named):
        raise InputError(
            f"{named}: not found; the run in {folder} was started in {saved.get('working_directory')} "
            "and goes on from there; or name the table where it lies now, before --continue"
        )
    raise InputError(f"{named}: {_CHANGED.format(folder)}")


def require_same_inputs(folder: Path, inputs: Sequence[Any], params: Any = None) -> list[dict[str, Any]]:
    """Raise InputError where `inputs`, the table and its stacks in order, are not those of the run in `folder`, and
    where what it began with (`beginnings`) is another now. Returns the records of the latter."""
    kept = inputs_of(read_job_json(folder), folder)
    begun = beginnings(params)
    if len(kept) - len(inputs) not in (0, len(begun)):  # 0: of a version that kept none
        raise InputError(
            f"{inputs[0]}: names {len(inputs) - 1} stacks, and {len(kept) - len(begun) - 1} when the run in {folder} "
            "began; start anew with --o another folder"
        )
    for record, path in zip(kept, inputs, strict=False):
        if not is_same(record, path):
            raise InputError(f"{path}: {_CHANGED.format(folder)}")
    for record, path in zip(kept[len(inputs) :], begun, strict=False):
        named = os.path.exists(path) and Path(path) in _references(params)
        needed = not last_checkpoint(params) or named or path in _kept_inputs(params)
        if needed and located(record, folder) is None and not is_same(record, path):
            there = _CHANGED if os.path.exists(path) else "not found, and the run in {} has not begun without it"
            flag = "--solvent-mask" if path in _kept_inputs(params) else "--ref"
            raise InputError(f"{flag} {path}: {there.format(folder)}")
    return kept[len(inputs) :]


def beginnings(params: Any) -> list[Path]:
    """What a run begins with beside its particles, and needs no more later: a map, or the last state of classes."""
    from polarice.runs.checkpoint import checkpoints, path_of

    files = [path_of(ref, max(checkpoints(ref), default=0)) if ref.is_dir() else ref for ref in _references(params)]
    return [*files, *_kept_inputs(params)]


def _references(params: Any) -> tuple[Path, ...]:
    """What --ref names."""
    ref = getattr(params, "ref", None)
    return ref if isinstance(ref, tuple) else () if ref is None else (ref,)


def _kept_inputs(params: Any) -> list[Path]:
    """Files beside the particles that every iteration needs."""
    mask = getattr(params, "solvent_mask", None)
    return [] if mask is None else [mask]


def _require_iterations_left(job: str, params: ParticleJob) -> None:
    done = last_checkpoint(params)
    named = _named(params)
    if named is not None and done == 0:
        raise InputError(f"{params.continue_}: no checkpoint of iteration {named} or before it is in {params.o}")
    if done < params.iterations or (done == params.iterations and not finished(params.o, done)):
        return
    raise InputError(
        f"{params.o}: all {done} iterations are done; ask for more: "
        f"{go_on_command(job, params.continue_ or params.o)} --iter {done + 10}"
    )


def finished(folder: Path, number: int) -> bool:
    """Whether the report of the last iteration was written to the end, which is the last thing a run does."""
    from polarice.runs.checkpoint import path_of

    page = folder / _REPORT
    if not page.exists() or not path_of(folder, number).exists():
        return False
    return page.stat().st_mtime_ns >= path_of(folder, number).stat().st_mtime_ns


def last_checkpoint(params: ParticleJob, below: int | None = None) -> int:
    """The newest checkpoint to go on from (of `--continue run_itNNN_...`, up to NNN), below `below`; 0: none."""
    from polarice.runs.checkpoint import checkpoints

    named = _named(params)
    found = checkpoints(params.o)
    return max(
        (n for n in found if (named is None or n <= named) and (below is None or n < below)),
        default=0,
    )


def _named(params: ParticleJob) -> int | None:
    if params.continue_ is None or params.continue_.is_dir():
        return None
    match = _ITERATION.match(params.continue_.name)
    return int(match[1]) if match else None


def claim(job: str, params: ParticleJob, inputs: list[Any], held: ExitStack | None = None) -> bool:
    """Make the folder and its job.json, or bring job.json of a run that goes on up to date; sweep up after a kill.

    Other processes are kept out of the folder until `held` is closed. Returns whether there was no such folder before.
    Raises InputError where it cannot be made or written, and where another process is at work in it.
    """
    folder, new = params.o, not os.path.exists(params.o)
    plain, record = replace(params, continue_=None), dict[str, Any]()
    begun: list[Any] = beginnings(params)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder ({error.strerror}); choose another with --o") from error
    try:
        if held is not None:
            held.enter_context(alone(folder))
        if params.continue_ is None:
            record = require_free(job, folder, [*inputs, *_tables_of(params)])  # another process may have come between
        else:
            begun = require_same_inputs(folder, inputs, params)
        for path in folder.iterdir():
            if (match := _LEFT_OVER.fullmatch(path.name)) and _is_of_run(match[1]):
                with naming_target(path):
                    path.unlink(missing_ok=True)
        if params.continue_ is None or read_job_json(folder)["params"] != as_dict(plain):
            kept = record or (read_job_json(folder).get(KEY) if params.continue_ is not None else None)
            more = {KEY: kept} if kept else {}
            write_job_json(
                folder, job, as_dict(plain), command_line(job, plain), inputs=[*inputs, *begun], seed=params.seed,
                more=more,
            )  # fmt: skip
    except InputError:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise
    state.claimed(folder)
    return new


def _tables_of(params: ParticleJob) -> list[Any]:
    """Files that the parameters name."""
    values = (getattr(params, each.field) for each in options_of(type(params)) if each.kind is Path)
    return [path for path in values if isinstance(path, Path) and path.is_file()]


def _is_of_run(name: str) -> bool:
    """Whether a file of this name is a run's own."""
    return name in (*FILES, NAME) or bool(_ITERATION.match(name) or _OUTPUT.fullmatch(name))


def abandon(folder: Path, new: bool) -> None:
    """Take back what `claim` made: nothing is left of a run that never began."""
    with suppress(OSError):
        for name in (NAME, *state.FILES):
            (folder / name).unlink(missing_ok=True)
        if new and not any(folder.iterdir()):
            folder.rmdir()


def rewind(params: ParticleJob) -> int:
    """Number of the iteration to go on after (0: from nothing; the last one: its report is all that is missing); what
    is left of later ones is removed.

    Raises InputError where its checkpoint cannot be read; then nothing is removed.
    """
    from polarice.io.relion_run.class2d import complete_iterations, discard_from
    from polarice.report import rewind_history
    from polarice.runs.checkpoint import checkpoints, require_readable

    done = last_checkpoint(params)
    lacking = _job_of(params.o) not in FINAL and done not in complete_iterations(params.o)
    if done == params.iter and lacking:  # manifolds leave RELION's files now and then only
        done = last_checkpoint(params, below=done)
    if done:
        require_readable(params.o, done)
    later = [number for number in checkpoints(params.o) if number > done]
    discard_from(params.o, done + 1)
    rewind_history(params.o, done + 1)
    if later:
        print(f"iterations {later[0]} to {later[-1]} of {params.o} have been removed", file=sys.stderr)
    if params.continue_ is not None:
        print(f"going on after iteration {done} of {params.iter}", file=sys.stderr)
    return done
