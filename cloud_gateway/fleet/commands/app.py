"""`hybrid fleet`: who belongs to a gateway's fleet, and what its boxes should be."""

import typer

from cloud_gateway.fleet.commands.alarms import app as alarms_app
from cloud_gateway.fleet.commands.assignments import add_assignment_commands
from cloud_gateway.fleet.commands.boxes import app as boxes_app
from cloud_gateway.fleet.commands.intake import add_item_commands
from cloud_gateway.fleet.commands.rollouts import app as rollout_app
from cloud_gateway.fleet.commands.status import status
from cloud_gateway.fleet.commands.tokens import app as token_app
from cloud_gateway.fleet.commands.trust import app as trust_app

app = typer.Typer(
    no_args_is_help=True,
    help="""The boxes of a gateway: let them in and out, say what they should be, see how they are.

    \b
    Examples:
      hybrid fleet token create --no-root --qr
      hybrid fleet boxes ls
      hybrid fleet alarms ls
      hybrid fleet assign detector:3 --tags site=oslo
      hybrid fleet assignments
      hybrid fleet unassign detector --tags site=oslo
      hybrid fleet tag camera-7 site=oslo gpu=
      hybrid fleet status --watch
    """,
)
app.add_typer(token_app, name="token")
app.add_typer(boxes_app, name="boxes")
app.add_typer(alarms_app, name="alarms")
app.add_typer(trust_app, name="trust")
app.add_typer(rollout_app, name="rollout")
add_assignment_commands(app)
app.command("status")(status)
add_item_commands(app)
