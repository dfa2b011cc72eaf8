"""`hybrid agent`: serve, look at a running agent, and make its tokens."""

from collections.abc import Callable
from pathlib import Path

import typer

from edge_agent.config import AgentConfig
from edge_agent.enroll_commands import HELP as ENROLL_HELP
from edge_agent.enroll_commands import enroll
from edge_agent.follow.import_commands import HELP as IMPORT_HELP
from edge_agent.follow.import_commands import import_version
from edge_agent.learning.rounds_commands import app as rounds_app
from edge_agent.living.doctor_commands import HELP as DOCTOR_HELP
from edge_agent.living.doctor_commands import doctor
from edge_agent.outbox.show_commands import HELP as OUTBOX_HELP
from edge_agent.outbox.show_commands import outbox
from edge_agent.samples.commands import app as samples_app
from edge_agent.status_commands import HELP as STATUS_HELP
from edge_agent.status_commands import status
from hybrid.cli.setting_flags import run_service, serve_command
from hybrid.cli.token_commands import token_app

app = typer.Typer(no_args_is_help=True, help="Run the agent of a box, and look at it.")
app.add_typer(token_app("agent", Path("./hybrid-agent")), name="token")

HELP = """Serve this box's models to programs on it (and to devices nearby), and keep them up to date.

\b
Examples:
  hybrid agent serve
  hybrid agent serve --gateway none --model detector=./detector.onnx
  hybrid agent serve --host 0.0.0.0 --data /var/lib/hybrid-agent

It needs no network, no gateway and no models to start. Each setting is a flag, a variable HYBRID_AGENT_NAME, or a line
of the --config file, in this order.
"""


def run(config: AgentConfig, read_again: Callable[[], AgentConfig]) -> None:
    """Run an agent in this process."""
    from edge_agent.agent import Agent
    from hybrid.hosting.service_log import ServiceLog

    log = ServiceLog(config.log_level, config.log_file, max_bytes=config.log_max_bytes, n_files=config.log_n_files)
    with log:
        run_service(Agent(config, read_again, log.set_level).serve, config.event_loop)


app.command("serve", help=HELP)(serve_command(AgentConfig, run))
app.command("enroll", help=ENROLL_HELP)(enroll)
app.command("status", help=STATUS_HELP)(status)
app.command("outbox", help=OUTBOX_HELP)(outbox)
app.add_typer(samples_app, name="samples")
app.add_typer(rounds_app, name="rounds")
app.command("import", help=IMPORT_HELP)(import_version)
app.command("doctor", help=DOCTOR_HELP)(doctor)
