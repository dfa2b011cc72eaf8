"""`hybrid explain CODE`: what an error code means and what to do about it, without a network."""

import sys

from hybrid.cli import failure, words
from hybrid.cli.explanations import EXPLANATIONS, KINDS, PAGE
from hybrid.cli.output import result
from hybrid.cli.table import columns, hanging
from hybrid.errors import ExitCode

USAGE = """\
Usage: hybrid explain [CODE] [--json]

Explain an error code, offline. Without a code: list them all.

Examples:
  hybrid explain gateway_untrusted
  hybrid explain --json
"""


_WIDTH = 100
"""Of a line where there is no terminal."""


def listing(room: int) -> str:
    """Every code, those of one kind together."""
    kinds: dict[str, list[str]] = {}
    title = ""
    for code in EXPLANATIONS:
        title = KINDS.get(code, title)
        kinds.setdefault(title, []).append(code)
    margin = max(map(len, kinds)) + 2
    lines = [
        line for kind, codes in kinds.items() for line in hanging(f"{kind:<{margin}}", " ".join(codes), room, margin)
    ]
    return "\n".join([*lines, "", "hybrid explain CODE: what it means, how it comes about, what to do"])


def explain(arguments: list[str]) -> int:
    """Run the command; `arguments` are those after the word `explain`."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE, end="")
        return ExitCode.OK
    json = words.wants_json(arguments)
    codes = [argument for argument in arguments if argument != "--json"]
    if len(codes) > 1 or any(code.startswith("-") for code in codes):
        print(USAGE, end="", file=sys.stderr)
        return ExitCode.USAGE
    if not codes:
        result(sorted(EXPLANATIONS), listing(columns() or _WIDTH), json=json)
        return ExitCode.OK
    code = codes[0]
    text = EXPLANATIONS.get(code)
    if text is None:
        near = words.nearest(code, list(EXPLANATIONS))
        advice = f"did you mean `hybrid explain {near}`?" if near else "`hybrid explain` lists every code"
        unknown = failure.usage_failure(f"there is no error code {code!r}", advice)
        failure.show(unknown, json=json)
        return ExitCode.NOT_FOUND
    data = {"code": code, "what": text.what, "why": text.why, "do": text.do, "docs": f"{PAGE}#{code}"}
    result(data, f"{code}\n  what: {text.what}\n  why:  {text.why}\n  do:   {text.do}", json=json)
    return ExitCode.OK
