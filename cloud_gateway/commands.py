"""`hybrid gateway`: serve, and the tokens of a gateway."""

from collections.abc import Callable
from pathlib import Path

import typer

from cloud_gateway.config import GatewayConfig
from hybrid.cli.setting_flags import run_service, serve_command
from hybrid.cli.token_commands import token_app

app = typer.Typer(no_args_is_help=True, help="Run the gateway, and make its tokens.")
app.add_typer(token_app("gateway", Path("./hybrid-gateway")), name="token")

HELP = """Serve models and tails to devices and to any Open Inference Protocol client.

\b
Examples:
  hybrid gateway serve
  hybrid gateway serve --port 0 --no-auth
  hybrid gateway serve --host 0.0.0.0 --data /var/lib/hybrid

Each setting is a flag, a variable HYBRID_GATEWAY_NAME, or a line of the --config file, in this order.
"""


def run(config: GatewayConfig, _: Callable[[], GatewayConfig]) -> None:
    """Run a gateway in this process."""
    from cloud_gateway.gateway import Gateway
    from hybrid.hosting.allocator import keep_freed_memory

    keep_freed_memory()
    run_service(Gateway(config).serve, config.event_loop)


app.command("serve", help=HELP)(serve_command(GatewayConfig, run))
