"""Which private key signs: a file, or the user's own, made at its first use."""

from pathlib import Path

from hybrid.cli.output import note


def key_path(sign: str) -> Path:
    """Where the key of `--sign` lies."""
    from hybrid.artifact.publishers import create_key, own_key_path

    path = own_key_path() if sign == "own" else Path(sign)
    if sign == "own" and not path.exists():
        create_key(path)
        note(f"made your own key: {path} (keep it secret; sessions of yours trust what it signs)")
    return path
