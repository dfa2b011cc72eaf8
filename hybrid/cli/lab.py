"""`hybrid lab`: try a program on an emulated device, over an emulated link, against a gateway; check the emulation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hybrid.cli.output import note, progress, result

if TYPE_CHECKING:
    from devices.lab.check import Finding

app = typer.Typer(
    no_args_is_help=True,
    help="""A device, a gateway and a link between them, emulated on this machine.

    \b
    Examples:
      hybrid lab run --device rpi-4b --link lte --model detector.onnx -- python app.py
      hybrid lab run --link up_bps=5e6,down_bps=20e6,rtt_s=0.06 --serve -- python app.py
      hybrid lab check
    """,
)

Kind = Literal["auto", "tun", "proxy"]
Slowdown = Literal["auto", "quota", "pacing", "none"]
LinkKind = Annotated[
    Kind,
    typer.Option("--kind", help="Of the link: real packets (tun), a shaped proxy, or the first where allowed."),
]
CongestionControl = Annotated[
    str | None,
    typer.Option("--congestion-control", help="Of TCP over real packets: cubic, bbr, …; else this machine's."),
]
SlowdownKind = Annotated[
    Slowdown, typer.Option("--slowdown", help="Of the device: the kernel's quota, pacing of our sessions, none.")
]
Factor = Annotated[
    float | None,
    typer.Option("--factor", help="How many times slower than this machine; else by a short benchmark.", min=1.0),
]
Cores = Annotated[
    int | None, typer.Option("--cores", help="Of the device; else as many as it has and fit here.", min=1)
]

RUN_HELP = """Run COMMAND on an emulated device; HYBRID_GATEWAY and HYBRID_TOKEN name the gateway behind the link.

What is emulated, and how, is told on stderr, and at the end what passed over the link. The exit code is COMMAND's.

\b
Examples:
  hybrid lab run --device rpi-4b --link lte --model detector.onnx -- python app.py
  hybrid lab run --link lte --trace draw --seed 7 --serve -- python app.py
  hybrid lab run --link up_bps=5e6,rtt_s=0.06 --gateway-command 'python serve.py {host} {port}' -- python app.py
"""


@app.command("run", help=RUN_HELP, context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(help="The program and its words.", metavar="COMMAND...")],
    device: Annotated[
        str | None, typer.Option("--device", help="A machine that `hybrid devices` lists, or a TOML file.")
    ] = None,
    link: Annotated[
        str | None, typer.Option("--link", help="A link that `hybrid devices` lists, a TOML file, or NAME=FIGURE,….")
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option("--trace", help="Rates over time: a CSV or JSON file, or `draw` from the link's statistics."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of losses, jitter and drawn traces.")] = 0,
    serve: Annotated[bool, typer.Option("--serve", help="Start `hybrid gateway serve` behind the link.")] = False,
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", help="Start that gateway with this model; may be given several times."),
    ] = None,
    gateway_command: Annotated[
        str | None,
        typer.Option("--gateway-command", help="Start this behind the link instead; {host} and {port} are filled in."),
    ] = None,
    gateway_port: Annotated[int, typer.Option("--gateway-port", help="Where that command serves.")] = 8700,
    kind: LinkKind = "auto",
    congestion_control: CongestionControl = None,
    slowdown: SlowdownKind = "auto",
    factor: Factor = None,
    cores: Cores = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout at the end; COMMAND's stdout goes to stderr.")
    ] = False,
) -> None:
    """Run a program on an emulated device."""
    from hybrid.cli.lab_run import Wanted, run_in_lab

    done = run_in_lab(
        Wanted(
            command=tuple(command),
            device=device,
            link=link,
            trace=trace,
            seed=seed,
            serves=serve or bool(model),
            models=tuple(model or ()),
            gateway_command=gateway_command,
            gateway_port=gateway_port,
            kind=kind,
            congestion_control=congestion_control,
            slowdown=slowdown,
            factor=factor,
            n_cores=cores,
        ),
        to_stderr=json,
    )
    note(done.text())
    if json:
        result(done, "", json=True)
    raise typer.Exit(done.exit_code)


CHECK_HELP = """Measure how true this machine's emulated links are, in about 12 seconds.

\b
Examples:
  hybrid lab check
  hybrid lab check --kind tun --congestion-control bbr --json
"""


@app.command("check", help=CHECK_HELP)
def check(
    kind: LinkKind = "auto",
    congestion_control: CongestionControl = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure the emulation of links."""
    from devices.lab import check as checks
    from devices.lab.lab import Lab

    findings: list[Finding] = []
    with Lab(kind=kind, congestion_control=congestion_control) as lab, checks.Traffic(lab) as traffic:
        with progress("measuring the emulated link", len(checks.RATES_BPS) + 2, "measurements") as bar:
            for rate_bps in checks.RATES_BPS:
                findings.append(checks.check_goodput(lab, traffic, rate_bps))
                bar.advance(1)
            for one in (checks.check_rtt, checks.check_trace):
                findings.append(one(lab, traffic))
                bar.advance(1)
        statistics = lab.link.statistics()
        how = {
            "kind": lab.link.kind,
            "congestion_control": lab.link.congestion_control,
            "scheduling": lab.link.scheduling,
            "cpu_ratio": statistics.cpu_ratio,
        }
    ok = all(finding.ok for finding in findings)
    lines = [f"{'PASS' if one.ok else 'FAIL'}  {one.what}: {one.seen:.3g} {one.unit}".rstrip() for one in findings]
    means = "real packets" if how["kind"] == "tun" else "shaped proxy"
    lines.append(f"{means}, congestion control {how['congestion_control'] or '(none: byte streams)'}")
    result({**how, "ok": ok, "findings": findings}, "\n".join(lines), json=json)
    raise typer.Exit(0 if ok else 1)
