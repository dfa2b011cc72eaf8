"""`hybrid rounds`: models that learn on the boxes of a fleet."""

import typer

from cloud_gateway.rounds.commands.campaigns import add_campaign_commands
from cloud_gateway.rounds.commands.export import export
from cloud_gateway.rounds.commands.report import report
from cloud_gateway.rounds.commands.simulate import add_simulate_command
from cloud_gateway.rounds.commands.watch import watch

app = typer.Typer(
    no_args_is_help=True,
    help="""Models that learn on the boxes' own data: campaigns of rounds, and what comes of them.

    \b
    Examples:
      hybrid rounds create digits:3 --rounds 20 --goal 8 --evaluate test.npz --promote rollout
      hybrid rounds create digits --goal 100 --noise 4 --clip 1 --max-epsilon 5
      hybrid rounds ls
      hybrid rounds show k3p9w2xa
      hybrid rounds watch k3p9w2xa
      hybrid rounds pause k3p9w2xa
      hybrid rounds resume k3p9w2xa
      hybrid rounds stop k3p9w2xa --promote candidate
      hybrid rounds promote k3p9w2xa --step 12
      hybrid rounds report k3p9w2xa
      hybrid rounds export k3p9w2xa --out learned.onnx
      hybrid rounds key
      hybrid rounds simulate --boxes 200 --goal 20
    """,
)
add_campaign_commands(app)
app.command("watch")(watch)
app.command("report")(report)
app.command("export")(export)
add_simulate_command(app)
