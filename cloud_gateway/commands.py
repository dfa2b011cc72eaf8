"""`hybrid gateway`: serve, and the tokens of a gateway.

Design: the flags of `serve` are made from the fields of `GatewayConfig`, so that a setting, its flag, its environment
variable and its help are written once.
"""

import asyncio
import gc
import os
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud_gateway.config import ENV_PREFIX, GatewayConfig, kind_of, load, settings
from cloud_gateway.token_commands import app as token_app

app = typer.Typer(no_args_is_help=True, help="Run the gateway, and make its tokens.")
app.add_typer(token_app, name="token")

HELP = """Serve models and tails to devices and to any Open Inference Protocol client.

\b
Examples:
  hybrid gateway serve
  hybrid gateway serve --port 0 --no-auth
  hybrid gateway serve --host 0.0.0.0 --data /var/lib/hybrid

Each setting is a flag, a variable HYBRID_GATEWAY_NAME, or a line of the --config file, in this order.
"""


def serve(config: Path | None = None, **flags: Any) -> None:
    """Run the gateway until it is told to stop."""
    try:
        given = {name: value for name, value in flags.items() if value is not False}
        chosen = load(given, os.environ, config)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc
    run(chosen)


def run(config: GatewayConfig) -> None:
    """Run a gateway in this process on the event loop that the configuration names."""
    from cloud_gateway.gateway import Gateway
    from hybrid.hosting.allocator import keep_freed_memory
    from hybrid.serving.engines.background import end_process

    keep_freed_memory()
    # What was imported stays for good: collecting it again and again costs a busy gateway a few per cent.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=_loop_factory(config.event_loop)) as runner:
        runner.run(Gateway(config).serve())
    end_process()


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


def _parameters() -> list[Parameter]:
    file = Annotated[Path | None, typer.Option("--config", envvar=f"{ENV_PREFIX}CONFIG", help="TOML file of settings.")]
    found = [Parameter("config", Parameter.KEYWORD_ONLY, default=None, annotation=file)]
    for spec in settings():
        kind: Any = kind_of(spec)
        shown = str(spec.metadata["text"])
        if spec.default not in (None, "", False):
            shown += f" (default: {spec.default})"
        # No envvar here: config.py reads the environment. No default either: None (False) tells "not given".
        option = typer.Option("--" + spec.name.replace("_", "-"), help=shown, show_default=False)
        annotation = Annotated[bool, option] if kind is bool else Annotated[kind | None, option]
        absent = False if kind is bool else None
        found.append(Parameter(spec.name, Parameter.KEYWORD_ONLY, default=absent, annotation=annotation))
    return found


def _named(parameters: list[Parameter]) -> None:
    serve.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


_named(_parameters())
app.command("serve", help=HELP)(serve)
