"""`hybrid explain CODE`: what an error code means and what to do about it, without a network."""

import sys

from hybrid.cli import failure, words
from hybrid.cli.explanations import EXPLANATIONS, PAGE
from hybrid.cli.output import result
from hybrid.errors import ExitCode

USAGE = """\
Usage: hybrid explain [CODE] [--json]

Explain an error code, offline. Without a code: list them all.

Examples:
  hybrid explain gateway_untrusted
  hybrid explain --json
"""


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
        listing = "\n".join(f"{code:<22}{text.what}" for code, text in sorted(EXPLANATIONS.items()))
        result(sorted(EXPLANATIONS), listing, json=json)
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
