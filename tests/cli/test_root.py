"""The root command: help, unknown words, versions, explanations, failures and exit codes, as a shell sees them."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from hybrid.cli.words import MissingExtra, found
from hybrid.errors import CATALOG, ExitCode

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_without_arguments_shows_help_on_stderr_and_exits_2(run_hybrid: Run) -> None:
    done = run_hybrid()
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert "Usage: hybrid" in done.stderr


def test_help_lists_every_subcommand(run_hybrid: Run) -> None:
    done = run_hybrid("--help")
    assert done.returncode == ExitCode.OK
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ") and line.strip()]
    assert set(found()) | {"explain", "completion"} <= set(listed)
    assert {"gateway", "models", "plan", "demo"} <= set(found())


def test_help_appears_at_once(hybrid_command) -> None:
    """At most 150 ms above bare Python; the median, since other work runs on the same machine."""

    def seconds(*command: object) -> float:
        began_s = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - began_s

    seconds(hybrid_command, "--help")
    differences = [seconds(hybrid_command, "--help") - seconds(sys.executable, "-c", "pass") for _ in range(7)]
    assert statistics.median(differences) <= 0.150


@pytest.mark.parametrize(("word", "near"), [("gatway", "gateway"), ("model", "models"), ("expalin", "explain")])
def test_an_unknown_word_gets_the_nearest_one(run_hybrid: Run, word: str, near: str) -> None:
    done = run_hybrid(word)
    assert done.returncode == ExitCode.USAGE
    assert f"did you mean `hybrid {near}`?" in done.stderr
    assert done.stdout == ""


def test_an_unknown_option_is_named(run_hybrid: Run) -> None:
    done = run_hybrid("--frobnicate")
    assert done.returncode == ExitCode.USAGE
    assert "no option '--frobnicate'" in done.stderr


def test_version(run_hybrid: Run) -> None:
    import hybrid

    assert run_hybrid("--version").stdout.startswith(f"hybrid {hybrid.__version__} ")
    answer = json.loads(run_hybrid("--version", "--json").stdout)
    assert answer["ok"] is True
    assert answer["data"]["hybrid"] == hybrid.__version__


def test_a_wrong_word_as_json_is_one_object(run_hybrid: Run) -> None:
    done = run_hybrid("gatway", "--json")
    assert done.returncode == ExitCode.USAGE
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["data"]) == (False, None)
    assert set(answer["error"]) == {"code", "what", "why", "do", "docs"}
    assert done.stderr == ""


@pytest.mark.parametrize("code", sorted(CATALOG))
def test_explain_knows_every_code(code: str) -> None:
    from hybrid.cli.explanations import EXPLANATIONS

    text = EXPLANATIONS[code]
    assert text.what.endswith(".")
    assert text.why.endswith(".")
    assert text.do.endswith(".")


def test_explain_prints_and_answers_as_json(run_hybrid: Run) -> None:
    done = run_hybrid("explain", "gateway_untrusted")
    assert done.returncode == ExitCode.OK
    labels = [line.split(":")[0].strip() for line in done.stdout.splitlines()]
    assert labels == ["gateway_untrusted", "what", "why", "do"]
    answer = json.loads(run_hybrid("explain", "gateway_untrusted", "--json").stdout)
    assert answer["data"]["code"] == "gateway_untrusted"


def test_explain_lists_all_codes(run_hybrid: Run) -> None:
    codes = json.loads(run_hybrid("explain", "--json").stdout)["data"]
    assert set(CATALOG) <= set(codes)


def test_explain_of_an_unknown_code(run_hybrid: Run) -> None:
    done = run_hybrid("explain", "gateway_untrustd")
    assert done.returncode == ExitCode.NOT_FOUND
    assert "did you mean `hybrid explain gateway_untrusted`?" in done.stderr


def test_python_runs_it_too(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hybrid", "--version"], capture_output=True, text=True, cwd=tmp_path, check=True
    )  # fmt: skip
    assert done.stdout.startswith("hybrid ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_back(run_hybrid: Run, shell: str) -> None:
    done = run_hybrid("completion", shell)
    assert done.returncode == ExitCode.OK
    assert "hybrid --complete" in done.stdout


def test_completion_of_an_unknown_shell(run_hybrid: Run) -> None:
    assert run_hybrid("completion", "tcsh").returncode == ExitCode.USAGE


def test_completion_completes_words_and_codes(run_hybrid: Run) -> None:
    assert run_hybrid("--complete", "ga").stdout.split() == ["gateway"]
    assert run_hybrid("--complete", "explain", "disk").stdout.split() == ["disk_full"]


def test_completion_works_in_bash(run_hybrid: Run, hybrid_command, tmp_path) -> None:
    script = run_hybrid("completion", "bash").stdout
    ask = 'COMP_WORDS=(hybrid mod); COMP_CWORD=1; _hybrid; printf "%s" "${COMPREPLY[*]}"'
    path = f"{hybrid_command.parent}:/usr/bin:/bin"
    done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, env={"PATH": path}, check=True)
    assert done.stdout == "models"


def test_wrong_usage_below_the_root_reads_like_any_other_failure(run_hybrid: Run) -> None:
    mistyped = run_hybrid("models", "pus")
    assert mistyped.returncode == ExitCode.USAGE
    assert mistyped.stderr.splitlines()[:2] == [
        "error[usage]: no such command 'pus'",
        "  do: did you mean `hybrid models push`?",
    ]
    flag = run_hybrid("gateway", "serve", "--prt", "3")
    assert flag.returncode == ExitCode.USAGE
    assert "did you mean `hybrid gateway serve --port`?" in flag.stderr
    bare = run_hybrid("models")
    assert bare.returncode == ExitCode.USAGE
    assert "Usage: hybrid models" in bare.stderr


def test_short_help_and_quiet_work_behind_a_subcommand(run_hybrid: Run) -> None:
    assert run_hybrid("models", "push", "-h").stdout.startswith("Usage: hybrid models push")
    done = run_hybrid("plan", "nowhere.onnx", "-q")
    assert done.returncode == ExitCode.NOT_FOUND
    assert "error[model_missing]" in done.stderr


def test_a_missing_package_names_its_extra() -> None:
    assert "hybrid-split[gateway]" in str(MissingExtra("gateway", "prometheus_client"))
    assert "pip install" not in str(MissingExtra("mine", "something_else"))
