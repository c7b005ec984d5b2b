"""`polarice JOB ...`: the command line, made from each job's Params.

Exit codes: 0 done, 2 the input cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import os
import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from polarice import __version__
from polarice.cluster import launched
from polarice.project.params import LEVELS, Option, P, Parameters, check, options_of, value_of, without_effect
from polarice.project.registry import JOBS, run
from polarice.types import InputError

BENCHES = {
    "bench card": "polarice.bench.card",
    "bench class2d": "polarice.bench.class2d",
    "bench engine": "polarice.bench.engine",
    "bench kills": "polarice.bench.kills",
    "bench scaling": "polarice.bench.scaling",
    "bench sml": "polarice.bench.sml",
}
CLUSTERS = {f"cluster {name}": f"polarice.jobs.batch.{name}" for name in ("slurm", "pbs", "local")}
SHELL = {"completion": "polarice.completion"}
COMMANDS = ChainMap(JOBS, BENCHES, CLUSTERS, SHELL)
WHAT_IT_IS = "single-particle cryo-EM, from movies to class averages and on to a map"
BEGIN = {
    "polarice doctor": "whether this machine is ready, and what to mend",
    "polarice example first": "particles and a workflow, in the folder first",
    "polarice run first/workflow.toml": "classify them: less than a minute",
}
GROUPS = {  # commands of two words
    "bench": "time Polarice beside other programs, its engine alone, its maps, or several ranks; kill these",
    "cluster": "write a batch script for a job, for Slurm, PBS or this machine, and submit it",
}


def load(name: str) -> ModuleType:
    """The module of a command, made as a job's is; KeyError where there is no such command."""
    return importlib.import_module(COMMANDS[name])


def command_of(words: Sequence[str]) -> str:
    """The command that the words begin with, of one word or two; "" where it is none."""
    return next((name for name in (" ".join(words[:1]), " ".join(words[:2])) if name in COMMANDS), "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `argv` (default: the process's own) and return the exit code; messages go to stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # before torch loads OpenMP: threads that wait spin shortly, or they take other programs' cores
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        if (launch := launched()) and launch.rank > 0:  # the first of the ranks talks for all
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    name = f"polarice {command_of(words)}".strip()
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        if argv is None:  # the process ends: its memory goes as a whole, and nobody need look for garbage in it
            gc.freeze()
        return code
    except InputError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{name}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away: nothing to say, nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def tell_fault(words: Sequence[str], error: BaseException) -> int:
    """Say what no check foresaw, and give the exit code."""
    from polarice.project.fault import tell

    return tell(words, error)


def _dispatch(words: list[str]) -> int:
    if not words:
        print(first_words(), end="")
        return 0
    if words[0] in ("-h", "--help", "help"):
        single = {name: load(name).SUMMARY for name in (*JOBS, *SHELL)}
        print(overview(single | GROUPS), end="")
        return 0
    if words[0] in ("--version", "-V"):
        print(f"polarice {__version__}")
        return 0
    if words[0] in GROUPS and (len(words) == 1 or words[1] in ("-h", "--help")):
        inner = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
        print(overview({name: load(name).SUMMARY for name in inner}), end="")
        return 0 if words[1:] else 2
    name = command_of(words)
    if not name:
        wrong = " ".join(words[: 2 if words[0] in GROUPS else 1])
        raise InputError(f"no such command: {wrong}{_meant(wrong, list(COMMANDS))}; polarice --help lists them")
    job = load(name)
    params = parse(name, job.Params, words[len(name.split()) :])
    check(params)
    for text in without_effect(params):
        print(f"polarice {name}: note: {text}", file=sys.stderr)
    if (launch := launched()) and not getattr(job, "RANKS", False):
        raise InputError(f"works in one process, and {launch.size} were started; start it without mpirun or srun")
    if name.startswith("cluster ") and params.job[0] in JOBS:  # what would end hours later is said now
        check(parse(params.job[0], load(params.job[0]).Params, params.job[1:]))
    if name in JOBS:
        run(name, params)
    else:
        job.run(params)
    return 0


def first_words() -> str:
    """What `polarice` alone prints: what it is, and the commands to begin with."""
    width = max(map(len, BEGIN))
    return "\n".join(
        [
            f"polarice {__version__}: {WHAT_IT_IS}.",
            "It reads and writes RELION's tables, stacks and job folders.",
            "",
            "to begin with:",
            *(f"  {command:{width}}  {text}" for command, text in BEGIN.items()),
            "",
            "polarice --help lists all commands; polarice COMMAND --help explains one.",
            "",
        ]
    )


def overview(summaries: Mapping[str, str]) -> str:
    """What `polarice --help` prints."""
    width = max(map(len, summaries))
    lines = [f"  {name:{width}}  {summary}" for name, summary in summaries.items()]
    return "\n".join(
        [
            f"polarice {__version__}: {WHAT_IT_IS}",
            "",
            "usage: polarice COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "polarice COMMAND --help explains a command; polarice --version prints the version.",
            "",
        ]
    )


def parse(name: str, params_class: type[P], words: Sequence[str]) -> P:
    """The Params that `words` ask for; prints help, or all that is wrong, and leaves by SystemExit as argparse does."""
    parser = build_parser(name, params_class)
    namespace, strange = parser.parse_known_args(_dashed(words))
    given, faults = vars(namespace), list(_strange(strange, parser))
    for each in options_of(params_class):
        if each.positional:
            named = given.pop(f"{each.field} by flag", None)
            given[each.field] = given[each.field] if named is None else named
            if given[each.field] in (None, []) and not each.optional and each.unless not in given:
                faults.append(f"the following arguments are required: {each.flag}")
        if each.kind is bool or given.get(each.field) is None:
            continue
        try:
            given[each.field] = value_of(each, given[each.field])
        except InputError as error:
            faults.append(str(error))
    if faults:
        parser.error("; ".join(faults))
    return params_class(**given)


def _strange(words: Sequence[str], parser: argparse.ArgumentParser) -> Iterator[str]:
    """What is wrong with words that no option takes."""
    known = [flag for action in parser._actions for flag in action.option_strings]
    if words and not words[0].startswith("-"):
        yield f"unexpected argument: {words[0]}"
    for word in (each for each in words if each.startswith("-")):
        yield f"no such option: {word}{_meant(word.split('=')[0], known)}"


def build_parser(name: str, params_class: type[Parameters]) -> argparse.ArgumentParser:
    """The argparse parser of job `name`, its options grouped by level and section; values stay text.

    Options that were not given do not appear in its namespace.
    """
    job = load(name)
    example = f"example:\n  {job.EXAMPLE}" if hasattr(job, "EXAMPLE") else None
    parser = _Parser(
        prog=f"polarice {name}", description=f"{job.SUMMARY}.", epilog=example, allow_abbrev=False,
        formatter_class=_HelpFormatter, usage=_usage(name, options_of(params_class)), add_help=False,
    )  # fmt: skip
    groups: dict[str, argparse._ArgumentGroup] = {}
    for each in sorted(options_of(params_class), key=lambda option: LEVELS.index(option.level)):
        title = heading_of(each)
        group = groups.setdefault(title, groups.get(title) or parser.add_argument_group(title))
        if each.positional:
            _add_positional(group, each)
        else:
            _add_option(group, each)
    parser.add_argument_group("help").add_argument("-h", "--help", action="help", help="print this text and end")
    return parser


def heading_of(option: Option) -> str:
    """The heading that an option stands under, in help and documentation."""
    if option.level == "essential":
        return "essential"
    if option.level == "machine":
        return "where and how fast"
    return option.section or "more options"


def _usage(name: str, options: Sequence[Option]) -> str:
    words = [_shown(each) for each in options if each.positional]
    return " ".join(["polarice", name, *words, "[options]"])


def _add_positional(group: argparse._ArgumentGroup, option: Option) -> None:
    nargs: Any = {1: None, None: "+"}.get(option.count, option.count)
    if option.flags:  # may stand behind a flag instead
        nargs = "?" if option.count == 1 else "*"
        group.add_argument(
            *option.flags,
            dest=f"{option.field} by flag",
            nargs=None if option.count == 1 else "+",
            metavar=option.flag.upper(),
            help=argparse.SUPPRESS,
        )
    text = _escape(describe(option))
    group.add_argument(option.field, nargs=nargs, metavar=option.flag.upper(), help=text)


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    flags = sorted({*option.flags, option.flag}, key=lambda flag: (len(flag) > 2, flag != option.flag))
    shared: dict[str, Any] = {
        "dest": option.field,
        "default": argparse.SUPPRESS,
        "help": _escape(describe(option)),
    }
    if option.kind is bool:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, **shared)
        return
    metavar = option.unit or {int: "N", float: "X", Path: "PATH", str: "TEXT"}[option.kind]
    shared["nargs"] = {1: None, None: "+"}.get(option.count, option.count)
    shared["metavar"] = f"{{{','.join(option.choices)}}}" if option.choices else metavar
    if option.count is None:
        shared["action"] = _Several
    group.add_argument(*flags, **shared)


def describe(option: Option) -> str:
    """Help, default, unit and bounds of an option in one line."""
    notes = [] if option.positional else [f"default: {default_text(option)}"]
    if option.bounds:
        notes.append(f"{option.bounds} {option.unit}".strip())
    return f"{option.help} ({'; '.join(notes)})" if notes else option.help


def default_text(option: Option) -> str:
    """The default as help and documentation show it."""
    if option.default in (None, ()):
        return option.derived or "none"
    if isinstance(option.default, bool):
        return "yes" if option.default else "no"
    items = option.default if isinstance(option.default, tuple) else (option.default,)
    text = " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)
    return f"{text} {option.unit}".strip() if text else option.derived or "none"


def markdown() -> str:
    """docs/commands.md: every option of every job."""
    lines = ["# Commands", "", "Made from the jobs' parameters by `make docs`; the tests hold it to them.", ""]
    for name in COMMANDS:
        job = load(name)
        options = sorted(options_of(job.Params), key=lambda option: LEVELS.index(option.level))
        lines += [f"## polarice {name}", "", f"{job.SUMMARY}.", "", f"    {_usage(name, options)}", ""]
        lines += [f"Example: `{job.EXAMPLE}`", ""] if hasattr(job, "EXAMPLE") else []
        for heading in dict.fromkeys(map(heading_of, options)):
            rows = [_markdown_row(each) for each in options if heading_of(each) == heading]
            lines += [f"| {heading} | default | bounds | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _shown(option: Option) -> str:
    """A positional option as usage lines show it."""
    return f"[{option.flag.upper()}]" if option.optional else option.flag.upper()


def _markdown_row(option: Option) -> str:
    spellings = [option.flag.upper() if option.positional else option.flag, *option.flags]
    if option.kind is bool and not option.positional:
        spellings.append(f"--no-{option.flag[2:]}")
    default = "" if option.positional else default_text(option)
    bounds = ", ".join(option.choices) or f"{option.bounds} {option.unit if option.bounds else ''}".strip()
    cells = [" ".join(f"`{each}`" for each in spellings), default, bounds, option.help]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


class _Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help explains)\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, with room for the flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


class _Several(argparse.Action):
    """A list: values side by side, numbers and choices also joined by commas, or each behind the flag again."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, []), *values])


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _dashed(words: Sequence[str]) -> list[str]:
    """RELION spells options with underscores: `--particle_diameter=200` becomes `--particle-diameter=200`."""
    dashed = []
    for word in words:
        flag, equals, value = word.partition("=")
        dashed.append(flag.replace("_", "-") + equals + value if word.startswith("--") else word)
    return dashed


def _meant(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


if __name__ == "__main__":
    sys.exit(main())
