"""Rows R6 and R20: boxes whose calendar is wrong, and boxes that were off for a month while certificates ran out.

python -m benchmarks.reliability.clock_rows [--seed 7]
"""

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.reliability.stage import FAKETIME, Box, Fleet, faked, losses, until
from benchmarks.reliability.table import Finding, keep
from tests.live_gateway import LiveGateway

COMMAND = "python -m benchmarks.reliability.clock_rows --seed {seed}"
WHENS = ("@1970-01-02 00:00:00", "-3600", "+3600", "+400d")


def _with_clock(folder: Path, when: str) -> tuple[bool, bool, int]:
    """Whether a box with this calendar gets its model over TLS, and brings its results; how many were lost."""
    fleet = Fleet(folder, "--host", "127.0.0.2")
    try:
        fleet.push(1)
        with faked(when):
            data = fleet.enroll("box")
            box = Box(data)
        with box:
            has_model = until(box.infer, 45) is not None
            is_taken = all(box.bring("a")[0] == 202 for _ in range(5))
            lost, twice, mixed = losses(fleet, box, 45)
        return has_model, is_taken, lost + twice + mixed
    finally:
        fleet.close()


def wrong_calendars(seed: int) -> Finding:
    """Boxes at 1970, an hour before and after, and a year ahead, each over TLS."""
    bad = []
    for when in WHENS:
        with tempfile.TemporaryDirectory() as place:
            has_model, is_taken, n_lost = _with_clock(Path(place), when)
        print(f"R6 {when}: model {has_model}, results {is_taken}, lost {n_lost}", file=sys.stderr, flush=True)
        if not has_model or not is_taken or n_lost:
            bad.append(f"{when}: model {has_model}, results {is_taken}, lost {n_lost}")
    return Finding(
        row="R6",
        fault=f"calendar of the box at {', '.join(WHENS)} (libfaketime), from its enrolment on, over TLS",
        promise="P5: it is enrolled, gets its model, brings its results",
        result="; ".join(bad) if bad else "enrolled, model there, nothing lost with each of them",
        held=not bad,
        times=len(WHENS),
        seed=seed,
        command=COMMAND.format(seed=seed),
    )


def _certificate(folder: Path, days: tuple[int, int]) -> tuple[Path, Path]:
    """A certificate for 127.0.0.2 that is valid between these days from now."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) + timedelta(days=days[0]))
        .not_valid_after(datetime.now(UTC) + timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.2"))]), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / f"cert{days[0]}.pem", folder / f"key{days[0]}.pem"
    chain.write_bytes(made.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    return chain, private


def month_away(seed: int) -> Finding:
    """The box sleeps for 60 days; meanwhile the gateway's certificate expires, and one with another key comes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        old, old_key = _certificate(folder, (-1, 30))
        fleet = Fleet(folder, "--host", "127.0.0.2", "--tls-cert", str(old), "--tls-key", str(old_key))
        try:
            fleet.push(1)
            box = Box(fleet.enroll("box"))
            with box:
                until(box.infer, 45)
                until(lambda: box.infer() and box.phase() == "committed", 60)
                fleet.gateway.stop()
                brought = sum(box.bring("a")[0] == 202 for _ in range(5))
                box.stop()
                new, new_key = _certificate(folder, (-1, 120))
                with faked("+60d"):
                    port = fleet.gateway.port
                    fleet.gateway = LiveGateway(
                        fleet.gateway.data, "--no-announce", "--host", "127.0.0.2", "--port", str(port),
                        "--tls-cert", str(new), "--tls-key", str(new_key),
                    )  # fmt: skip
                    box.start()
                    offline = box.infer()
                    begun_s = time.monotonic()
                    lost, twice, mixed = losses(fleet, box, 90)
                    took_s = time.monotonic() - begun_s
                    fleet.push(2)
                    arrives = until(lambda: box.version() == "2", 60) is not None
        finally:
            fleet.close()
    result = (
        f"served at once: {offline}; {brought} results from before brought after {took_s:.1f} s, {lost} lost, {twice} "
        f"twice; the next version arrived: {arrives}"
    )
    return Finding(
        row="R20",
        fault="box off for 60 days; the gateway's certificate expired meanwhile and was renewed with another key",
        promise="P5: comes back without a person; P3",
        result=result,
        held=bool(offline and arrives and brought == 5 and not (lost or twice or mixed)),
        times=1,
        seed=seed,
        command=COMMAND.format(seed=seed),
    )


def main() -> int:
    """Both rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    if not FAKETIME.exists():
        raise SystemExit(f"libfaketime is missing ({FAKETIME}; Debian: apt install faketime)")
    found = [wrong_calendars(chosen.seed), month_away(chosen.seed)]
    keep("clock_rows", found)
    for finding in found:
        print(f"{finding.row} {finding.verdict}: {finding.result}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
