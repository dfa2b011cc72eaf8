"""Where the box's own calls around its outbox are."""

from typing import Final

OUTBOX_PATH: Final = "/v2/hybrid/agent/outbox"
RESULTS_PATH: Final = "/v2/hybrid/agent/results"
DEFERRED_PATH: Final = "/v2/hybrid/agent/deferred"
DEFER: Final = "Hybrid-Defer"
"""Header of an inference call: `always`, or `offline` to defer only where nothing here can compute it now."""
