"""The `serve` command of a service, whose flags are made from the fields of its settings."""

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine, MutableMapping
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from hybrid.hosting.settings import Settings, kind_of, load, settings_of

S = TypeVar("S", bound=Settings)


def serve_command(kind: type[S], run: Callable[[S, Callable[[], S]], None]) -> Callable[..., None]:
    """A function for typer with a flag for each setting, and `--config`.

    Args:
        kind: the settings.
        run: called with what was chosen, and with what reads file and environment again (raises `ValueError`).
    """

    def serve(config: Path | None = None, **flags: Any) -> None:
        """Run the service until it is told to stop."""
        multiply_in_one_thread(os.environ)
        given = {name: value for name, value in flags.items() if value is not False}

        def chosen() -> S:
            return load(kind, given, os.environ, config)

        try:
            first = chosen()
        except ValueError as exc:
            raise typer.BadParameter(str(exc)) from exc
        run(first, chosen)

    parameters = _parameters(kind)
    serve.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return serve


def run_service(make: Callable[[], Coroutine[Any, Any, None]], event_loop: str) -> None:
    """Run a service in this process, on the event loop that its settings name, and end the process's threads."""
    from hybrid.serving.engines.background import end_process

    # What was imported stays for good: collecting it again and again costs a busy service a few per cent.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=_loop_factory(event_loop)) as runner:
        runner.run(make())
    end_process()


def multiply_in_one_thread(environment: MutableMapping[str, str]) -> None:
    """Have numpy multiply in one thread, unless the operator says otherwise; before numpy is imported.

    OpenBLAS' other threads spin for some 30 ms after each product, which takes the cores from requests (measured:
    two thirds of what an agent that trains used).
    """
    if not environment.get("OMP_NUM_THREADS"):
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")


def _loop_factory(kind: str) -> Any:
    if kind == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if kind == "uvloop":
            raise typer.BadParameter("uvloop is not installed; install hybrid-split[gateway] or use asyncio") from None
        return None
    return uvloop.new_event_loop


def _parameters(kind: type[Settings]) -> list[Parameter]:
    file = Annotated[
        Path | None, typer.Option("--config", envvar=f"{kind.PREFIX}CONFIG", help="TOML file of settings.")
    ]
    found = [Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=file)]
    for spec in settings_of(kind):
        value_kind: Any = kind_of(spec)
        shown = str(spec.metadata["text"])
        if spec.default not in (None, "", False):
            shown += f" (default: {spec.default})"
        # No envvar here: `load` reads the environment. No default either: None (False) tells "not given".
        option = typer.Option("--" + spec.name.replace("_", "-"), help=shown, show_default=False)
        annotation = Annotated[bool, option] if value_kind is bool else Annotated[value_kind | None, option]
        absent = False if value_kind is bool else None
        found.append(Parameter(spec.name, Parameter.KEYWORD_ONLY, default=absent, annotation=annotation))
    return found
