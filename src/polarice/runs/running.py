"""A job at work, whichever it is: its folder claimed, its end reported, what stops it said in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from polarice.cluster import SERIAL, Comm
from polarice.project.params import command_line
from polarice.runs.defaults import settled_defaults
from polarice.runs.particle_job import CheckedParticles, ParticleJob, image_name
from polarice.types import InputError, Iteration

if TYPE_CHECKING:
    from polarice.report import Report
    from polarice.report.index import Chapter
    from polarice.runs.particle_job import ParticleJob

P = TypeVar("P", bound=ParticleJob)


class Run(Protocol):
    """What has been begun and can be done."""

    def all(self) -> None: ...


def settled(job: str, params: P, iterations: int) -> P:
    """The parameters of a run that begins (`iterations` where none are said) or goes on; its folder may be used."""
    from polarice.runs import resume

    if params.continue_ is not None:
        return resume.continued(job, params)
    resume.require_free(job, params.o)
    return settled_defaults(replace(params, iter=params.iter or iterations))


def carry_out(
    job: str, params: ParticleJob, inputs: Sequence[Any], begin: Callable[[], Run], comm: Comm = SERIAL
) -> None:
    """Claim the folder, begin, do it all; of several ranks, rank 0 claims.

    Raises InputError for what cannot be used, for a full disk, and where memory is short; a folder that nothing was
    begun in is taken back. Ctrl-C says how to go on.
    """
    from polarice.align.memory_chunks import is_out_of_memory
    from polarice.runs import resume

    begun, claimed, new = False, False, False
    try:
        with ExitStack() as held:
            new = comm.on_root(lambda: resume.claim(job, params, list(inputs), held))
            claimed = True
            run = begin()
            begun = True
            run.all()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; to go on: {resume.go_on_command(job, params.o)}") from None
    except InputError as error:
        if begun:
            raise InputError(f"{error}; to go on: {resume.go_on_command(job, params.o)}") from error
        if claimed and params.continue_ is None:
            resume.abandon(params.o, new)
        raise
    except OSError as error:
        if params.scratch is None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise InputError(
            f"--scratch {params.scratch}: {error.strerror}; free some space, or go on with another folder: "
            f"{resume.go_on_command(job, params.o)} --scratch FOLDER"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            "out of memory; allow less with --memory, or ask for fewer classes or a smaller --offset-range"
        ) from error


def page_of(
    job: str,
    params: ParticleJob,
    looked: CheckedParticles,
    iteration: Iteration,
    chapters: Sequence[Chapter] = (),
    notes: Mapping[str, str] | None = None,
    usage: Sequence[tuple[str, str]] = (),
) -> Report:
    """What report.html and its pictures show, of the last iteration."""
    from polarice.project.provenance import versions
    from polarice.report import LeftOut, Report, parameters_of, read_history
    from polarice.runs.resume import go_on_command

    plain = replace(params, continue_=None)
    images = looked.images
    return Report(
        title=f"{job}: {looked.table.path.name}",
        job=job,
        history=read_history(params.o),
        iteration=iteration,
        command=command_line(job, plain),
        continue_command=f"{go_on_command(job, params.o)} --iter {params.iterations + 10}",
        parameters=parameters_of(plain),
        versions=versions(),
        left_out=[LeftOut(image_name(looked.table, row), reason) for row, reason in sorted(looked.bad.items())],
        optics_names=[optics.name for optics in looked.table.particles.optics],
        particle_diameter_A=2 * images.preparation.radius_px * images.pixel_size_A,
        working_directory=os.getcwd(),
        chapters=chapters,
        notes=notes or {},
        usage=usage,
    )
