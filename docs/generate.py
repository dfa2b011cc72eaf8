"""Write the pages that follow from the program: docs/errors.md from the catalog, docs/cli.md from the commands.

Run it with `make docs`; `--check` writes nothing and exits 1 where a page is not what the program says.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid.cli import words
from hybrid.cli.completion import USAGE as COMPLETION_USAGE
from hybrid.cli.explain import USAGE as EXPLAIN_USAGE
from hybrid.cli.explanations import EXPLANATIONS
from hybrid.cli.main import TAIL
from hybrid.errors import CATALOG, ExitCode

HERE = Path(__file__).parent

ERRORS_HEAD = """\
# Errors

<!-- Written by docs/generate.py from hybrid/cli/explanations.py and hybrid/errors.py. -->

Every error has a code that never changes: it travels between device and gateway, stands in `--json` and in
`session.report.fallback`, and is a heading of this page. `hybrid explain CODE` says the same without a network. In
Python, each code is a class of `hybrid.errors`; all of them are a `hybrid.HybridError`.
"""

CLI_HEAD = """\
# The command `hybrid`

<!-- Written by docs/generate.py from the commands themselves. -->

Results go to stdout, everything else (log, notes, progress bars, errors) to stderr. Bars and colours appear only on a
terminal, and `NO_COLOR` and `TERM=dumb` are honoured. A setting is taken from its flag, else from its `HYBRID_…`
variable, else from its default.

With `--json` a command prints one object to stdout, of the same shape whether it worked or not:

```json
{"ok": true, "data": {}, "error": null}
{"ok": false, "data": null, "error": {"code": "", "what": "", "why": "", "do": "", "docs": ""}}
```

| exit code | meaning |
|---|---|
"""

MEANING = {
    ExitCode.OK: "it worked",
    ExitCode.FAILED: "it failed; the message says why",
    ExitCode.USAGE: "the command line does not parse",
    ExitCode.NOT_FOUND: "a file, model, version or code does not exist",
    ExitCode.PERMISSION: "no token, the wrong one, or no right to do this",
    ExitCode.UNREACHABLE: "the gateway cannot be reached now: try later",
    ExitCode.REFUSED: "refused by a limit or a rule",
    ExitCode.NOTHING_WON: "`hybrid compress` found nothing that is worth shipping; its report says why",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C",
}


def errors_page() -> str:
    """docs/errors.md: one heading a code."""
    lines = [ERRORS_HEAD]
    for code, text in EXPLANATIONS.items():
        kind = CATALOG.get(code)
        lines += [f"## {code}", ""]
        if kind is not None:
            status, exit_code = kind.http_status, int(kind.exit_code)
            lines += [f"`hybrid.errors.{kind.__name__}` · HTTP {status} · exit code {exit_code}", ""]
        lines += [f"- **What:** {text.what}", f"- **Why:** {text.why}", f"- **Do:** {text.do}", ""]
    return "\n".join(lines).rstrip() + "\n"


def cli_page() -> str:
    """docs/cli.md: every command with every flag."""
    lines = [CLI_HEAD + "\n".join(f"| {int(code)} | {MEANING[code]} |" for code in ExitCode), ""]
    lines += ["## hybrid", "", "```text", TAIL.strip(), "```", ""]
    for name, usage in (("completion", COMPLETION_USAGE), ("explain", EXPLAIN_USAGE)):
        lines += [f"## hybrid {name}", "", "```text", usage.strip(), "```", ""]
    for name, point in words.found().items():
        for path, command in walk(f"hybrid {name}", words.load(point)):
            lines += section(path, command)
    return "\n".join(lines).rstrip() + "\n"


def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command and all below it, each with the words that call it."""
    yield path, command
    for name, child in sorted(getattr(command, "commands", {}).items()):
        if not child.hidden:
            yield from walk(f"{path} {name}", child)


def section(path: str, command: Any) -> list[str]:
    """One command: its words, its help as written, its arguments and flags."""
    text = (command.help or "").replace("\b\n", "").strip()
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    shape = " ".join([path, *(param.name.upper() for param in arguments)])
    shape += " COMMAND" if getattr(command, "commands", None) else ""
    lines = [f"## {path}", "", "```text", shape + (" [OPTIONS]" if options else ""), "", text, "```", ""]
    if options or arguments:
        lines += ["| argument or flag | default | meaning |", "|---|---|---|"]
        lines += [row(param) for param in (*arguments, *options)] + [""]
    return lines


def row(param: Any) -> str:
    """One argument or flag as a row of a table."""
    names = [*param.opts, *param.secondary_opts] if param.param_type_name == "option" else [param.name.upper()]
    shown = ", ".join(f"`{name}`" for name in names)
    default = "" if param.default in {None, False, ()} or callable(param.default) else f"`{param.default}`"
    if param.required:
        default = "required"
    variable = param.envvar if isinstance(param.envvar, str) else ", ".join(param.envvar or [])
    meaning = " ".join((getattr(param, "help", None) or "").split()).replace("|", "\\|")
    return f"| {shown} | {default} | {meaning}{f' Variable: `{variable}`.' if variable else ''} |"


def main() -> int:
    """Write the pages, or compare them with what is written."""
    stale = 0
    for name, written in (("errors.md", errors_page), ("cli.md", cli_page)):
        page, text = HERE / name, written()
        if page.is_file() and page.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if "--check" in sys.argv[1:]:
            print(f"docs/{name} is not what the program says: run `make docs`")
        else:
            page.write_text(text, encoding="utf-8")
            print(f"docs/{name} written")
    return int(bool(stale) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
