"""What docs/reliability.md says below its table: prose.md, with the planted bugs that the tests know."""

from pathlib import Path

from tests.reliability.test_planted import FOUND_BY


def sections() -> tuple[str, ...]:
    """All of them, in order."""
    rows = "\n".join(f"| {name} | {promise} | {seed} |" for name, (seed, promise) in sorted(FOUND_BY.items()))
    text = (Path(__file__).parent / "prose.md").read_text(encoding="utf-8")
    return (text.replace("PLANTED", rows).rstrip(),)
