"""What a masked round is about, as every box signs it: campaign, model, scale, and the losses it is made for."""

import hashlib
import math
from typing import Final

import msgspec

from hybrid.errors import BadMessage

LABEL: Final = b"hybrid secure task v1"
MAX_ELEMENTS: Final = 1 << 28
MAX_LEVELS: Final = 32767
MAX_TASK_BYTES: Final = 4096
LEAST_DEVICES: Final = 3
_MAX_TEXT: Final = 200


class SecureTask(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at one masked round; the same bytes for all who take part.

    Attributes:
        campaign: its id.
        step: of the model that the updates are against.
        attempt: 1, and one more each time that the round begins anew with fresh keys.
        model, artifact_digest, variant: what learns.
        layout_digest: of the vector's layout (`hybrid.federated.layout`).
        n_elements: of the vector.
        clip_norm: largest L2 norm of what one device sends.
        element_range: largest absolute value of one element of it.
        n_levels: of the quantized sum on each side of zero, 127 for int8.
        has_clip_bit: whether one more element counts the devices whose norm was within the clip (1) or not (-1).
        least_devices: fewest devices in a sum.
        dropout_percent: share of the devices that may be lost.
        corrupt_percent: share of the devices that may work for the gateway.
        devices_digest: SHA-256 of the operator's device list in hex, empty where none is used.
    """

    campaign: str
    step: int
    model: str
    artifact_digest: str
    variant: str
    layout_digest: str
    n_elements: int
    clip_norm: float
    element_range: float
    attempt: int = 1
    n_levels: int = 127
    has_clip_bit: bool = False
    least_devices: int = LEAST_DEVICES
    dropout_percent: int = 30
    corrupt_percent: int = 20
    devices_digest: str = ""

    def __post_init__(self) -> None:
        """Raises `BadMessage` for what no round can have."""
        texts = (self.campaign, self.model, self.artifact_digest, self.variant, self.layout_digest, self.devices_digest)
        if any(len(text) > _MAX_TEXT for text in texts) or not self.campaign:
            raise BadMessage(f"a masked round needs a campaign's id, and texts of at most {_MAX_TEXT} characters")
        ranges = {
            "step": (0, 1 << 53),
            "n_elements": (1, MAX_ELEMENTS),
            "n_levels": (1, MAX_LEVELS),
            "attempt": (1, 1 << 20),
            "least_devices": (LEAST_DEVICES, 1 << 20),
            "dropout_percent": (0, 45),
            "corrupt_percent": (0, 45),
        }
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise BadMessage(f"a masked round of {name} {getattr(self, name)}; {least} to {most} is wanted")
        for name in ("clip_norm", "element_range"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 1e-30 < value < 1e30):
                raise BadMessage(f"a masked round of {name} {value}; a finite number above 0 is wanted")

    @property
    def digest(self) -> bytes:
        """What the signatures of the round hold of it: 32 bytes."""
        return hashlib.sha256(LABEL + msgspec.msgpack.encode(self)).digest()

    @property
    def step_size(self) -> float:
        """What one level is worth."""
        return self.element_range / self.n_levels

    @property
    def n_masked(self) -> int:
        """Elements that are masked: the vector's, and the clip bit."""
        return self.n_elements + int(self.has_clip_bit)
