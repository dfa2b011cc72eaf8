"""Where the box's own calls around its samples are."""

from typing import Final

SAMPLES_PATH: Final = "/v2/hybrid/agent/samples"
LABEL: Final = "Hybrid-Label"
"""Header of a sample that a program brings: what was right, as JSON."""
