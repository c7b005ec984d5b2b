"""The page of docs/workflow.md: `python scripts/write_workflow_page.py WORKFLOW.toml`, after `polarice run`."""

import sys
from contextlib import chdir
from pathlib import Path

from polarice.jobs.workflow import read_steps
from polarice.project.params import command_line
from polarice.report.chain import Link, write_chain_report

TARGET = Path(__file__).parents[1] / "docs/apoferritin_workflow.html"

workflow = Path(sys.argv[1])
with chdir(workflow.parent):
    steps = read_steps(Path(workflow.name))
    links = [Link(step.name, step.job, command_line(step.job, step.params())) for step in steps]
    made = write_chain_report(Path("page.html"), "From 12 micrographs to classes", links, to_reports=False)
    TARGET.write_text(made.read_text(encoding="utf-8"), encoding="utf-8")
    made.unlink()
print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")
