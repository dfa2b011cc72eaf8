"""Shell completion: `hybrid completion SHELL` prints a script that asks `hybrid --complete` for the words."""

import sys
from collections.abc import Mapping

from hybrid.cli import failure, words
from hybrid.errors import ExitCode

USAGE = """\
Usage: hybrid completion bash|zsh|fish

Print the completion script of a shell.

Examples:
  hybrid completion bash >> ~/.bashrc
  hybrid completion fish > ~/.config/fish/completions/hybrid.fish
"""

_BASH = """\
_hybrid() {
  local IFS=$'\\n'
  COMPREPLY=($(hybrid --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _hybrid hybrid
"""

SCRIPTS = {
    "bash": _BASH,
    "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + _BASH,
    "fish": "complete -c hybrid -a '(hybrid --complete (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'\n",
}


def completion(arguments: list[str]) -> int:
    """Run `hybrid completion`; `arguments` are those after the word."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE, end="")
        return ExitCode.OK
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        seen = " ".join(arguments) or "no shell"
        advice = f"name one shell: {', '.join(SCRIPTS)}"
        unknown = failure.usage_failure(f"there is no completion script for {seen}", advice)
        failure.show(unknown, json=words.wants_json(arguments))
        return ExitCode.USAGE
    print(SCRIPTS[arguments[0]], end="")
    return ExitCode.OK


def complete(arguments: list[str]) -> int:
    """Print, one a line, what may stand in place of the last of `arguments` (the words after `hybrid`)."""
    *before, last = arguments or [""]
    for candidate in candidates(before):
        if candidate.startswith(last):
            sys.stdout.write(candidate + "\n")
    return ExitCode.OK


def candidates(before: list[str]) -> list[str]:
    """Every word and flag that may follow the words `before`."""
    known = words.found()
    plain = [word for word in before if not word.startswith("-")]
    if not plain:
        return sorted([*known, "completion", "explain", "--help", "--quiet", "--version"])
    if plain[0] == "completion":
        return list(SCRIPTS)
    if plain[0] == "explain":
        from hybrid.cli.explanations import EXPLANATIONS

        return sorted(EXPLANATIONS)
    if plain[0] not in known:
        return []
    command: object = words.load(known[plain[0]])
    for word in plain[1:]:
        command = _children(command).get(word, command)
    flags = [flag for param in getattr(command, "params", []) for flag in param.opts if flag.startswith("--")]
    return sorted([*_children(command), *flags, "--help"])


def _children(command: object) -> Mapping[str, object]:
    children = getattr(command, "commands", {})
    return children if isinstance(children, Mapping) else {}
