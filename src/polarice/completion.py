"""`polarice completion SHELL`: completion of commands, options and values, made from the jobs' Params."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polarice import __version__
from polarice.cli import COMMANDS, GROUPS, load
from polarice.project.params import Option, Parameters, argument, options_of

SUMMARY = "print what teaches a shell to complete commands, options and values"
EXAMPLE = "polarice completion bash > ~/.local/share/bash-completion/completions/polarice"
FISH_FOLDERS = " -x -a '(__fish_complete_directories)'"
TABLES = ("particles", "micrographs", "coordinates")  # what a .star file may hold


@dataclass(frozen=True)
class Params(Parameters):
    """Of which shell."""

    shell: Literal["bash", "zsh", "fish"] = argument("bash, zsh or fish")


def run(params: Params) -> None:
    """Print the script."""
    writers: dict[str, Callable[[], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
    print(writers[params.shell](), end="")


def bash() -> str:
    """The script for bash: two tables, and what looks words up in them."""
    options, values = list[str](), list[str]()
    for name in COMMANDS:
        known = options_of(load(name).Params)
        spellings = [flag for each in known for flag in flags_of(each)]
        options.append(f'    "{name}") echo "{" ".join([*spellings, "--help"])}" ;;')
        values += _bash_values(name, known)
    first = " ".join(dict.fromkeys([*(name.split()[0] for name in COMMANDS), "--help", "--version"]))
    groups = "\n".join(f'    "{group}") echo "{" ".join(_inner(group))}" ;;' for group in GROUPS)
    return _BASH.format(
        version=__version__, first=first, groups=groups, options="\n".join(options), values="\n".join(values),
        group_names="|".join(GROUPS),
    )  # fmt: skip


def _bash_values(name: str, known: tuple[Option, ...]) -> Iterator[str]:
    """Of each option and position of a command a line: how many values, and what they are."""
    position = 0
    for each in known:
        patterns = [f'"{name} {flag}"' for flag in flags_of(each) if not flag.startswith("--no-")]
        if each.positional:
            position += 1
            patterns.insert(0, f'"{name} @{position}"' if each.count == 1 else f'"{name} @"[{position}-9]*')
        if each.kind is not bool and patterns:
            many = "many" if each.count is None else str(each.count)
            yield f'    {"|".join(patterns)}) echo "{many} {" ".join(each.choices) or kind_of(each)}" ;;'


def flags_of(option: Option) -> list[str]:
    """All spellings of an option; none of a position without one."""
    if option.positional:
        return list(option.flags)
    negated = [f"--no-{option.flag[2:]}"] if option.kind is bool else []
    return [option.flag, *option.flags, *negated]


def kind_of(option: Option) -> str:
    """`<star>`, `<file>` and `<folder>` for what is completed by names of files; `<any>` for all else."""
    if option.kind is not Path:
        return "<any>"
    if option.path is None:
        return "<file>"
    if option.path.kind == "folder":
        return "<folder>"
    return "<star>" if option.path.holds in TABLES else "<file>"


def _inner(group: str) -> list[str]:
    """Second words of a group's commands."""
    return [name.split()[1] for name in COMMANDS if name.startswith(f"{group} ")]


_BASH = """\
# Completion of polarice {version} for bash, made by `polarice completion bash`.

_polarice_options() {{
  case "$1" in
    "") echo "{first}" ;;
{groups}
{options}
  esac
}}

# What may stand at a position ("COMMAND @1") or behind an option ("COMMAND --FLAG"): how many words, and which.
_polarice_values() {{
  case "$1" in
{values}
  esac
}}

_polarice() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} begin=1 at word command told="" count=0 since=0 position=1
  COMPREPLY=()
  if [[ ${{COMP_WORDS[1]:-}} == cluster ]]; then  # behind -- stands a command of its own
    for ((at = 2; at < COMP_CWORD; at++)); do
      [[ ${{COMP_WORDS[at]}} == -- ]] && begin=$((at + 1))
    done
  fi
  command=""
  ((COMP_CWORD > begin)) && command=${{COMP_WORDS[begin]}}
  at=$((begin + 1))
  case "$command" in
    {group_names})
      if ((COMP_CWORD > begin + 1)); then command="$command ${{COMP_WORDS[begin + 1]}}"; at=$((begin + 2)); fi ;;
  esac
  [[ -z $command ]] && at=$COMP_CWORD
  for (( ; at < COMP_CWORD; at++)); do  # the option that the word in question belongs to
    word=${{COMP_WORDS[at]}}
    if [[ $word == -?* ]]; then
      told=$(_polarice_values "$command ${{word//_/-}}")
      count=${{told%% *}} since=0
    elif [[ $word != = ]]; then
      if [[ -n $told && ( $count == many || $since -lt $count ) ]]; then
        since=$((since + 1))
      else
        position=$((position + 1))
      fi
    fi
  done
  [[ $cur == = ]] && cur=""
  if [[ -z $told || ( $count != many && $since -ge $count ) || ( $count == many && $cur == -* ) ]]; then
    if [[ $cur == -* || -z $command ]]; then
      mapfile -t COMPREPLY < <(compgen -W "$(_polarice_options "$command")" -- "$cur")
      return
    fi
    told=$(_polarice_values "$command @$position")
    if [[ -z $told ]]; then
      mapfile -t COMPREPLY < <(compgen -W "$(_polarice_options "$command")" -- "$cur")
      return
    fi
  fi
  told=${{told#* }}
  case "$told" in
    "<any>") ;;
    "<folder>") compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
    "<file>") compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    "<star>")
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -d -- "$cur"; compgen -f -X '!*.@(star|cs)' -- "$cur") ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$told" -- "$cur") ;;
  esac
}}

shopt -s extglob 2>/dev/null
complete -F _polarice polarice
"""


def zsh() -> str:
    """The script for zsh: a list of _arguments for each command."""
    cases, single = list[str](), list[str]()
    for name in COMMANDS:
        options = options_of(load(name).Params)
        specs = [spec for each in options if not each.positional for spec in _zsh_option(each)]
        specs += [spec for each in options if each.positional for spec in _zsh_position(each)]
        lines = " \\\n        ".join([*specs, "'--help[print help]'"])
        cases.append(f"    ('{name}')\n      _arguments -S \\\n        {lines} ;;")
        if " " not in name:
            single.append(f"    {_zsh_quoted(f'{name}:{load(name).SUMMARY}')}")
    single += [f"    {_zsh_quoted(f'{group}:{text}')}" for group, text in GROUPS.items()]
    groups = "\n".join(f"    ({group}) inner=({' '.join(_inner(group))}) ;;" for group in GROUPS)
    return _ZSH.format(version=__version__, commands="\n".join(single), groups=groups, cases="\n".join(cases))


def _zsh_option(option: Option) -> Iterator[str]:
    text = re.sub(r"([\[\]:\\])", r"\\\1", option.help)
    for flag in flags_of(option):
        if option.kind is bool:
            yield _zsh_quoted(f"{flag}[{text}]")
        else:
            value = f":{option.unit or 'value'}:{_zsh_action(option)}"
            repeated = f":*-*{value}" if option.count is None else value * (option.count or 1)
            yield _zsh_quoted(f"{flag}[{text}]{repeated}")


def _zsh_position(option: Option) -> Iterator[str]:
    star = "*" if option.count is None else ""
    yield _zsh_quoted(f"{star}:{option.flag}:{_zsh_action(option)}")
    yield from _zsh_option(option) if option.flags else ()


def _zsh_action(option: Option) -> str:
    if option.choices:
        return f"({' '.join(option.choices)})"
    kinds = {"<file>": "_files", "<folder>": "_files -/", "<star>": '_files -g "*.(star|cs)"', "<any>": ""}
    return kinds[kind_of(option)]


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_ZSH = """\
#compdef polarice
# Completion of polarice {version} for zsh, made by `polarice completion zsh`.

_polarice() {{
  local -a commands inner
  local name
  commands=(
{commands}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  name=$words[2]
  case $name in
{groups}
  esac
  if (( $#inner )); then
    if (( CURRENT == 3 )); then
      compadd -- $inner
      return
    fi
    name="$name $words[3]"
    shift words
    (( CURRENT-- ))
  fi
  shift words
  (( CURRENT-- ))
  case $name in
{cases}
  esac
}}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _polarice "$@"
else
  compdef _polarice polarice
fi
"""


def fish() -> str:
    """The script for fish: one line for each command and each option."""
    lines = [_FISH.format(version=__version__)]
    summaries = {name: load(name).SUMMARY for name in COMMANDS if " " not in name} | GROUPS
    for name, text in summaries.items():
        lines.append(f"complete -c polarice -n '__polarice_is' -f -a {name} -d {_fish_quoted(text)}")
    for group in GROUPS:
        for inner in _inner(group):
            text = _fish_quoted(load(f"{group} {inner}").SUMMARY)
            lines.append(f"complete -c polarice -n '__polarice_is {group}' -f -a {inner} -d {text}")
    for name in COMMANDS:
        here = f"complete -c polarice -n '__polarice_in {name}'"
        for each in options_of(load(name).Params):
            lines += [f"{here} {rest}" for rest in _fish_option(each)]
        lines.append(f"{here} -l help -d 'print help'")
    return "\n".join(lines) + "\n"


def _fish_option(option: Option) -> Iterator[str]:
    values = f" -x -a {_fish_quoted(' '.join(option.choices))}" if option.choices else ""
    kinds = {
        "<file>": " -r -F",
        "<star>": " -r -F",
        "<folder>": " -x -a '(__fish_complete_directories)'",
        "<any>": " -x",
    }
    values = values or kinds[kind_of(option)]
    if option.positional and option.choices:
        yield f"-f -a {_fish_quoted(' '.join(option.choices))}"
    for flag in flags_of(option):
        spelled = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
        yield f"{spelled} -d {_fish_quoted(option.help)}{'' if option.kind is bool else values}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_FISH = """\
# Completion of polarice {version} for fish, made by `polarice completion fish`.
complete -c polarice -e

function __polarice_is  # whether these words, and no others, stand before the cursor
    set -l words (commandline -opc)
    test "$words[2..-1]" = "$argv"
end

function __polarice_in  # whether the command line begins with these words
    set -l words (commandline -opc)
    set -l last (math (count $argv) + 1)
    test (count $words) -ge $last; and test "$words[2..$last]" = "$argv"
end
"""
