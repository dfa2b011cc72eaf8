"""`hybrid compress`: a smaller, faster model for one device, under a floor on accuracy, with a report."""

import typer

app = typer.Typer()
