"""The root command `hybrid`: reads the first word, loads only what that word needs, and says how it ended.

Design: the root is plain Python, not typer. `hybrid --help` must appear at once on a small board, and a parser that is
not loaded costs nothing; each subcommand parses its own arguments with typer.
"""

import os
import re
import sys
from typing import NamedTuple

from hybrid.cli import output, words
from hybrid.errors import ExitCode

HEAD = """\
Usage: hybrid [OPTIONS] COMMAND ...

One model, two places: a device and a gateway answer each request together.

Examples:
  hybrid demo
  hybrid gateway serve
  hybrid explain gateway_untrusted

Commands:
"""

TAIL = """
Options:
  -h, --help   Show this and exit.
  --version    Show the version and exit.
  -q, --quiet  Only results and errors: no notes, no progress, no warnings.
  -v           Log more to stderr, and show tracebacks; -vv logs everything.

`hybrid COMMAND --help` tells more about a command. -q and -v may stand anywhere.
"""

OWN_WORDS = {
    "completion": "Print the completion script of a shell: bash, zsh or fish.",
    "explain": "Explain an error code, offline.",
}


class Invocation(NamedTuple):
    """A command line: the root's own options, its first word, and what follows it."""

    verbosity: int
    word: str
    rest: list[str]


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code (one of `hybrid.errors.ExitCode`)."""
    given = sys.argv[1:] if arguments is None else arguments
    invocation = _read(given)
    try:
        return _dispatch(invocation)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader left: nothing more to say to it, also not at exit
        return ExitCode.FAILED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the last place that can answer)
        from hybrid.cli.failure import failure_of, show

        if invocation.verbosity > 0:
            sys.excepthook(type(error), error, error.__traceback__)
        seen = failure_of(error)
        show(seen, json=words.wants_json(given))
        return seen.exit_code


def _read(arguments: list[str]) -> Invocation:
    """Split off the root's own options; they may stand anywhere before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    verbosity, rest = 0, []
    for option in arguments[:end]:
        if option in {"-q", "--quiet"}:
            verbosity = -1
        elif option in {"-v", "-vv"}:
            verbosity = max(0, verbosity) + len(option) - 1
        else:
            rest.append(option)
    rest += arguments[end:]
    return Invocation(verbosity=verbosity, word=rest[0] if rest else "", rest=rest[1:])


def _dispatch(invocation: Invocation) -> int:
    word = invocation.word
    if word in {"", "-h", "--help", "help"}:
        print(_help(), end="", file=sys.stdout if word else sys.stderr)
        return ExitCode.OK if word else ExitCode.USAGE
    if word == "--version":
        return _version(json=words.wants_json(invocation.rest))
    if word == "explain":
        from hybrid.cli.explain import explain

        return explain(invocation.rest)
    if word in {"completion", "--complete"}:
        from hybrid.cli.completion import complete, completion

        return completion(invocation.rest) if word == "completion" else complete(invocation.rest)
    return _run(invocation)


def _run(invocation: Invocation) -> int:
    """Load a subcommand and run it; its errors come up to `main`, only a wrong command line is shown here."""
    from hybrid.cli import failure

    word, known = invocation.word, words.found()
    json = words.wants_json(invocation.rest)
    if word not in known:
        kind = "option" if word.startswith("-") else "command"
        near = words.nearest(word, [*known, *OWN_WORDS])
        advice = f"did you mean `hybrid {near}`?" if near else "see `hybrid --help` for what there is"
        failure.show(failure.usage_failure(f"there is no {kind} {word!r}", advice), json=json)
        return ExitCode.USAGE
    _listen(invocation.verbosity)
    command = words.load(known[word])
    try:
        returned = command.main(args=invocation.rest, prog_name=f"hybrid {word}", standalone_mode=False)
    except Exception as error:
        exit_code, message = getattr(error, "exit_code", None), getattr(error, "format_message", None)
        if exit_code is None or message is None:
            if type(error).__name__ == "Abort":  # a prompt that was closed
                raise KeyboardInterrupt from error
            raise
        path = getattr(getattr(error, "ctx", None), "command_path", None) or f"hybrid {word}"
        what = re.sub(r"\.? (Did you mean|\(Possible options).*", "", message(), flags=re.DOTALL)
        if type(error).__name__ == "NoArgsIsHelpError":
            if not json:
                error.show()  # type: ignore[attr-defined]  # the help, which says what there is
                return ExitCode.USAGE
            what = "no subcommand was given"
        what = what[:1].lower() + what[1:].rstrip(".")
        failure.show(failure.usage_failure(what, _advice(error, path)), json=json)
        return int(exit_code)
    if returned == ExitCode.INTERRUPTED:  # the command line library swallowed it
        raise KeyboardInterrupt
    return returned if isinstance(returned, int) else ExitCode.OK


def _advice(error: Exception, path: str) -> str:
    """What to type instead, where a name was mistyped; else where to read on."""
    wrong, known = getattr(error, "option_name", None), list(getattr(error, "possibilities", None) or [])
    context = getattr(error, "ctx", None)
    if wrong is None and (said := re.search(r"No such command '([^']*)'", str(getattr(error, "message", "")))):
        wrong, known = said[1], list(getattr(getattr(context, "command", None), "commands", {}))
    near = words.nearest(wrong, known) if wrong else None
    return f"did you mean `{path} {near}`?" if near else f"see `{path} --help`"


def _listen(verbosity: int) -> None:
    """Send the library's log to stderr at the wanted level, and keep notes back when asked to be quiet."""
    import logging

    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("hybrid")
    logger.addHandler(handler)
    logger.setLevel(level)
    output.be_quiet(quiet=verbosity < 0)


def _help() -> str:
    rows = {point.name: words.summary(point) for point in words.found().values()} | OWN_WORDS
    width = max(map(len, rows)) + 2
    return HEAD + "".join(f"  {name:<{width}}{text}\n" for name, text in sorted(rows.items())) + TAIL


def _version(*, json: bool) -> int:
    import platform

    from hybrid import __version__

    data = {"hybrid": __version__, "python": platform.python_version()}
    output.result(data, f"hybrid {__version__} (Python {data['python']})", json=json)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
