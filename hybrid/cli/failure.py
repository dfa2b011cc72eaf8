"""How a failed command reads: what was seen, why that happens, what to do, and an exit code that scripts can trust."""

import sys
from dataclasses import dataclass

from hybrid.cli.explanations import EXPLANATIONS, PAGE
from hybrid.cli.output import encode
from hybrid.cli.words import OWN_PACKAGES, MissingExtra, extra_hint
from hybrid.errors import ExitCode, HybridError


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failure as people and programs read it.

    Attributes:
        code: stable, a heading of the error page.
        what: what was seen, with the facts of this case.
        why: how that comes about.
        do: what to do now.
        docs: where more is written.
        exit_code: how the process ends.
    """

    code: str
    what: str
    why: str
    do: str
    docs: str
    exit_code: ExitCode


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception means; what nobody foresaw is `internal`."""
    code, exit_code, what = _facts(error)
    known = EXPLANATIONS.get(code, EXPLANATIONS["internal"])
    do = getattr(error, "advice", None) or known.do
    return Failure(code=code, what=what, why=known.why, do=do, docs=f"{PAGE}#{code}", exit_code=exit_code)


def usage_failure(what: str, do: str) -> Failure:
    """A command line that does not parse, with the advice that fits it."""
    why = EXPLANATIONS["usage"].why
    return Failure(code="usage", what=what, why=why, do=do, docs=f"{PAGE}#usage", exit_code=ExitCode.USAGE)


def show(failure: Failure, *, json: bool) -> None:
    """Write a failure: one JSON object to stdout with `json`, else what was seen and what to do, to stderr."""
    if json:
        error = {key: getattr(failure, key) for key in ("code", "what", "why", "do", "docs")}
        print(encode({"ok": False, "data": None, "error": error}), flush=True)
        return
    if failure.exit_code is ExitCode.INTERRUPTED:
        print("interrupted", file=sys.stderr, flush=True)
        return
    print(f"error[{failure.code}]: {failure.what}\n  do: {failure.do}", file=sys.stderr)
    print(f"  more: hybrid explain {failure.code}", file=sys.stderr, flush=True)


def _facts(error: BaseException) -> tuple[str, ExitCode, str]:
    if isinstance(error, HybridError):
        return error.code, error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):  # while C was imported
        return "interrupted", ExitCode.INTERRUPTED, "interrupted"
    if isinstance(error, MissingExtra):
        return "missing_extra", ExitCode.FAILED, str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in OWN_PACKAGES:
        what = f"this needs the package {error.name!r}, which is not installed{extra_hint(error.name or '')}"
        return "missing_extra", ExitCode.FAILED, what
    exit_code = next((exit_code for kind, exit_code in _EXIT_CODES.items() if isinstance(error, kind)), ExitCode.FAILED)
    code = getattr(error, "code", None)
    if isinstance(code, str) and code in EXPLANATIONS:  # compression and devices own their errors
        return code, _EXIT_CODES_BY_CODE.get(code, exit_code), str(error)
    if exit_code is not ExitCode.FAILED:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        return ("not_found" if exit_code is ExitCode.NOT_FOUND else "forbidden"), exit_code, what
    return "internal", exit_code, f"{type(error).__name__}: {error}"


_EXIT_CODES = {FileNotFoundError: ExitCode.NOT_FOUND, PermissionError: ExitCode.PERMISSION}
_EXIT_CODES_BY_CODE = {"catalog_unknown": ExitCode.NOT_FOUND}
"""The ground floors know nothing of exit codes."""
