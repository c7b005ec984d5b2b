"""`polarice select`: classes, particles or micrographs by rules, both tables written, and the rule that made them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from polarice.io.atomic import replacing
from polarice.io.star import write_star
from polarice.project import state
from polarice.runs.selection_rules import SelectionRules

SUMMARY = "choose classes, particles or micrographs by rules; writes what is chosen, what is not, and why"
EXAMPLE = "polarice select Class2D/job006 --o Select/job007 --auto"
NOTE = "selection.txt"
LISTS = ("class_averages.star", "backup_selection.star", "classes.star")  # of classes, where there are any


@dataclass(frozen=True)
class Params(SelectionRules):
    """Rules, all of which are to be met; what is not said is no rule."""


def run(params: Params) -> None:
    """Choose and write. Raises InputError for rules that cannot be applied, and where nothing is left."""
    from polarice.io.class_files import run_files
    from polarice.project.outputs import claimed
    from polarice.project.params import as_dict, command_line
    from polarice.project.provenance import write_job_json
    from polarice.report.selection import REPORT, write_page
    from polarice.runs.selecting import lines_of, select, summary_of, tables_of

    files = run_files(params.table)
    found = select(params, files)
    tables, command, lines = tables_of(found), command_line("select", params), lines_of(found)
    inputs = [path for path in (files.data, files.model, params.micrographs) if path is not None]
    with ExitStack() as held:
        kept = claimed("select", params.o, (*tables, *LISTS, NOTE, REPORT, *state.FILES), inputs, held)
        write_job_json(
            params.o, "select", as_dict(params), command,
            inputs=inputs, more={"outputs": kept, "selection": summary_of(found)},
        )  # fmt: skip
        for name in {*LISTS} - {*tables}:  # of an earlier choice
            (params.o / name).unlink(missing_ok=True)
        for name, blocks in tables.items():
            write_star(params.o / name, blocks)
        with replacing(params.o / NOTE, "w") as stream:
            stream.write("\n".join([command, *lines]) + "\n")
        page = write_page(params.o, command, found, lines)
    print("\n".join([*lines, f"written: {params.o / next(iter(tables))}; report: {page}"]))
