"""The words that may follow `hybrid`: found by entry points, loaded only when one is used."""

import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from hybrid.cli.output import decorated

GROUP = "hybrid.commands"
"""The entry-point group in which a package offers a subcommand: a name, and a `typer.Typer` or a typer command."""

SUMMARIES = {
    "agent": "Run the service of an edge box.",
    "bench": "Models, machines, links and policies against each other, on a virtual clock.",
    "calibrate": "Measure what lossy codecs cost a model in accuracy, and sign it.",
    "cascade": "Put a small and a large model into one artifact: the small one answers where it is sure.",
    "compress": "Make a smaller, faster model for one device, under a floor on accuracy.",
    "demo": "See a device and a gateway answer together while the link between them changes.",
    "devices": "List the machines and links that can be emulated, with the source of every figure.",
    "doctor": "Say what this machine is, what works here, and how to mend what does not.",
    "fleet": "The boxes of a gateway: let them in, say what they run, see how they are.",
    "gateway": "Run the gateway, and make its tokens.",
    "keys": "A publisher's key, and the publishers whose word counts here.",
    "lab": "A device, a gateway and a link between them, emulated on this machine.",
    "models": "Push models to a gateway, list them, pull them.",
    "plan": "Show where a model can be cut, and what each cut costs.",
    "profile": "Time a model and its heads on this machine, once.",
    "rounds": "Models that learn on the boxes' own data: campaigns, simulations, reports.",
    "stats": "How well a program's decisions predicted, and what they cost.",
    "why": "Replay a decision: all alternatives, their costs, and why.",
}
"""One line for each word that this project offers, so that the list of commands loads none of them."""

OWN_PACKAGES = ("hybrid", "edge_agent", "cloud_gateway", "compression", "devices")


class Command(Protocol):
    """A loaded subcommand: the part of typer's command that the root needs."""

    def main(self, args: list[str], prog_name: str, standalone_mode: bool) -> object:
        """Parse the arguments and run; with `standalone_mode` off, errors are raised to the caller."""
        ...


_EXTRAS = {
    "prometheus_client": "gateway",
    "uvloop": "gateway",
    "rapidocr": "demo",
    "skimage": "demo",
    "torch": "compression",
    "torch_pruning": "compression",
    "ai_edge_litert": "tflite",
}
"""The extra that brings a package, by the name under which it is imported."""


def extra_hint(module: str) -> str:
    """How to install what is missing, or an empty string where no extra of ours brings it."""
    extra = _EXTRAS.get(module.partition(".")[0])
    return f"; install it: pip install 'hybrid-split[{extra}]'" if extra else ""


class MissingExtra(Exception):
    """A subcommand whose package was installed without what it needs."""

    def __init__(self, word: str, module: str) -> None:
        super().__init__(f"`hybrid {word}` needs the package {module!r}, which is not installed{extra_hint(module)}")
        self.word = word


def found() -> dict[str, EntryPoint]:
    """Every subcommand that is installed, by its word, in alphabetical order."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def summary(point: EntryPoint) -> str:
    """One line on what a subcommand does, without loading it."""
    if point.name in SUMMARIES:
        return SUMMARIES[point.name]
    return f"Offered by {point.dist.name}." if point.dist else "Offered by another package."


def load(point: EntryPoint) -> Command:
    """Import a subcommand and make it ready to run; completion is the root's business, so typer's flags for it go.

    Raises:
        MissingExtra: a package of an extra is not installed.
    """
    try:
        app = point.load()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in OWN_PACKAGES or not missing:
            raise
        raise MissingExtra(point.name, missing) from error
    import typer

    if not isinstance(app, typer.Typer):
        return cast("Command", app)
    command = typer.main.get_command(app)
    command.params = [param for param in command.params if param.name not in {"install_completion", "show_completion"}]
    _set(command, plain=not decorated(sys.stdout))
    return cast("Command", command)


def _set(command: Any, *, plain: bool) -> None:
    """Let a command and all below it know `-h`; their help is plain text where frames and colours do not belong."""
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    if plain:
        command.rich_markup_mode = None
    for child in getattr(command, "commands", {}).values():
        _set(child, plain=plain)


def nearest(word: str, known: list[str]) -> str | None:
    """The known word that was most likely meant, or None."""
    from difflib import get_close_matches

    matches = get_close_matches(word, known, n=1, cutoff=0.5)
    return matches[0] if matches else None


def wants_json(arguments: list[str]) -> bool:
    """Whether `--json` stands among the arguments, before any `--`: also true where parsing them failed."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in before
