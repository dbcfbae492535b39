"""The completion scripts of ``van`` for bash, zsh and fish.

All three work alike: the words before the cursor give the command's path; the last option before the cursor, and how
many values it takes, decide whether a value, an option or a file name comes next.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from van.cli.arguments import ANY, Command, Flag

Names = Mapping[str, Mapping[str, str]]
"""Path to the names that may follow it, each with its summary."""

_BASH = """\
# bash completion of van; made by "van completion bash"
_van_names() {{
    case "$1" in
{names}
    esac
}}
_van_options() {{
    case "$1" in
{options}
    esac
}}
# how many values an option takes (-1: any number), then its choices; "@" stands for file names
_van_values() {{
    case "$1" in
{values}
    esac
}}
_van() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" path="" option="" distance=0 index word candidates IFS=$' \\t\\n'
    COMPREPLY=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        word="${{COMP_WORDS[index]}}"
        if [[ -n $word && -z $option && " $(_van_names "$path") " == *" $word "* ]]; then
            path="${{path:+$path }}$word"
        elif [[ $word == --* ]]; then
            option="$word" distance=0
        elif [[ $word != "=" ]]; then  # bash splits --out=runs at the sign
            distance=$((distance + 1))
        fi
    done
    [[ $current == "=" ]] && current=""
    if [[ $current == -* ]]; then
        candidates="$(_van_options "$path")"
    elif [[ -n $(_van_names "$path") && -z $option ]]; then
        candidates="$(_van_names "$path")"
    else
        candidates="$(_van_values "$path $option")"
        local count="${{candidates%% *}}"
        candidates="${{candidates#* }}"
        if [[ -z $option || ( $count != -1 && $distance -ge ${{count:-0}} ) ]]; then
            candidates="$(_van_values "$path ")"
            candidates="${{candidates#* }}"
        fi
    fi
    if [[ $candidates == "@" ]]; then
        compopt -o filenames 2>/dev/null
        IFS=$'\\n'
        COMPREPLY=($(compgen -f -- "$current"))
    else
        COMPREPLY=($(compgen -W "$candidates" -- "$current"))
    fi
    [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}}
complete -F _van van
"""

_ZSH = """\
#compdef van
# zsh completion of van; made by "van completion zsh"
_van_names() {{
    case "$1" in
{names}
    esac
}}
_van_options() {{
    case "$1" in
{options}
    esac
}}
_van_values() {{
    case "$1" in
{values}
    esac
}}
_van() {{
    local current="${{words[CURRENT]}}" command_path="" option="" distance=0 index word count
    local -a found candidates reply
    for ((index = 2; index < CURRENT; index++)); do
        word="${{words[index]}}"
        reply=(); _van_names "$command_path"
        if [[ -z $option && -n ${{(M)reply:#$word:*}} ]]; then
            command_path="${{command_path:+$command_path }}$word"
        elif [[ $word == --* ]]; then
            option="$word" distance=0
        else
            distance=$((distance + 1))
        fi
    done
    reply=(); _van_names "$command_path"
    if [[ $current == -* ]]; then
        reply=(); _van_options "$command_path"
        _describe option reply
        return
    elif [[ ${{#reply}} -gt 0 && -z $option ]]; then
        _describe command reply
        return
    fi
    reply=(); _van_values "$command_path $option"
    count="${{reply[1]:-0}}"
    if [[ -z $option || ( $count != -1 && $distance -ge $count ) ]]; then
        reply=(); _van_values "$command_path "
    fi
    candidates=("${{(@)reply[2,-1]}}")
    if [[ ${{candidates[1]}} == "@" ]]; then
        _files
    else
        compadd -- "${{candidates[@]}}"
    fi
}}
# autoloaded from a file, the function has to be called; sourced, it has to be registered
if [[ "$funcstack[1]" == _van ]]; then
    _van "$@"
else
    compdef _van van
fi
"""

_FISH = """\
# fish completion of van; made by "van completion fish"
function __van_at
    set -l words (commandline -opc)
    test (count $words) -gt (count $argv); or return 1
    for index in (seq (count $argv))
        test $words[(math $index + 1)] = $argv[$index]; or return 1
    end
end
function __van_needs_name
    __van_at $argv; and test (count (commandline -opc)) -eq (math (count $argv) + 1)
end
complete -c van -f
"""


def write_bash(commands: Mapping[str, Command[Any]], names: Names) -> str:
    """Write the script for bash 3.2 and later.

    Args:
        commands: path to command.
        names: path to the names that may follow it.
    """

    def echo(words: Iterable[str]) -> str:
        return f"echo {shlex.quote(' '.join(words))}"

    return _BASH.format(
        names=_cases({path: echo(entries) for path, entries in names.items()}),
        options=_cases({path: echo(_options(command)) for path, command in commands.items()}),
        # the space after the count is there even where no choice follows
        values=_cases({key: echo([values[0], " ".join(values[1:])]) for key, values in _list_values(commands).items()}),
    )


def write_zsh(commands: Mapping[str, Command[Any]], names: Names) -> str:
    """Write the script for zsh 5 and later; arguments as for ``write_bash``."""

    def described(entries: Mapping[str, str]) -> str:
        return _reply(f"{name}:{text}" for name, text in entries.items())

    return _ZSH.format(
        names=_cases({path: described(entries) for path, entries in names.items()}),
        options=_cases({path: described(_options(command)) for path, command in commands.items()}),
        values=_cases({key: _reply(values) for key, values in _list_values(commands).items()}),
    )


def write_fish(commands: Mapping[str, Command[Any]], names: Names) -> str:
    """Write the script for fish 3 and later; arguments as for ``write_bash``."""
    lines = [_FISH]
    for path, entries in names.items():
        for name, text in entries.items():
            condition = f"__van_needs_name {path}".strip()
            lines.append(f"complete -c van -n {_fish(condition)} -a {name} -d {_fish(text)}\n")
    for path, command in commands.items():
        start = f"complete -c van -n {_fish(f'__van_at {path}')}"
        for flag in command.flags():
            values = _values_of(flag)
            choices = "" if values in ([], ["@"]) else f" -a {_fish(' '.join(values))}"
            if not flag.option:
                lines.append(f"{start}{choices or ' -F'}\n")
                continue
            takes = "" if flag.count == 0 else " -r -F" if values == ["@"] else " -x"
            lines.append(f"{start} -l {flag.option[2:]}{takes}{choices} -d {_fish(_first_clause(flag.help))}\n")
        lines.append(f"{start} -l help -s h -d 'Show this help and exit'\n")
    return "".join(lines)


def _options(command: Command[Any]) -> dict[str, str]:
    """Return the options of a command, each with its description."""
    return {flag.option: _first_clause(flag.help) for flag in command.flags() if flag.option} | {
        "--help": "Show this help and exit"
    }


def _list_values(commands: Mapping[str, Command[Any]]) -> dict[str, list[str]]:
    """Return ``PATH OPTION`` to how many values the option takes and the values; ``PATH `` has positional ones."""
    listed: dict[str, list[str]] = {}
    for path, command in commands.items():
        for flag in command.flags():
            values = [str(ANY if not flag.option else flag.count), *_values_of(flag)]
            listed.setdefault(f"{path} {flag.option}", values)
    return listed


def _values_of(flag: Flag) -> list[str]:
    """Return what to complete for a flag; ``@`` stands for file names."""
    return ["@"] if flag.takes_path else list(flag.choices)


def _cases(bodies: Mapping[str, str]) -> str:
    """Write the branches of a ``case`` statement; keys with the same body share one."""
    keys: dict[str, list[str]] = {}
    for key, body in bodies.items():
        keys.setdefault(body, []).append(shlex.quote(key))
    return "\n".join(f"        {'|'.join(patterns)}) {body} ;;" for body, patterns in keys.items())


def _reply(words: Iterable[str]) -> str:
    return f"reply=({' '.join(map(shlex.quote, words))})"


def _fish(text: str) -> str:
    """Quote for fish, where only the backslash and the quote itself are escaped."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _first_clause(text: str) -> str:
    """Return a help text up to its first semicolon or full stop, for one line of a completion list."""
    return re.split(r"; |(?<=\w)\. ", text)[0].rstrip(".")
