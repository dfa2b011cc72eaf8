"""Where the fleet's calls are; both sides take the paths from here."""

from typing import Final

FLEET: Final = "/v2/hybrid/fleet"
HELLO_PATH: Final = f"{FLEET}/hello"
ENROLL_PATH: Final = f"{FLEET}/enroll"
ACCESS_PATH: Final = f"{FLEET}/access"
STATE_PATH: Final = f"{FLEET}/state"
INGEST_PATH: Final = f"{FLEET}/ingest"
OUTCOMES_PATH: Final = f"{FLEET}/outcomes"
BLOBS_PATH: Final = f"{FLEET}/blobs"
CHUNKS_PATH: Final = "/v2/hybrid/chunks"
ADMIN_TOKENS_PATH: Final = f"{FLEET}/tokens"
ADMIN_BOXES_PATH: Final = f"{FLEET}/boxes"
ADMIN_ALARMS_PATH: Final = f"{FLEET}/alarms"
ADMIN_TRUST_PATH: Final = f"{FLEET}/trust"
