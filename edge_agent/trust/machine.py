"""On which machine this installation finds itself: what tells one board from another that got a copy of its card."""

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

_SERIALS: Final = (
    "sys/firmware/devicetree/base/serial-number",
    "proc/device-tree/serial-number",
    "sys/class/dmi/id/product_uuid",
    "sys/class/dmi/id/board_serial",
)
_NONE: Final = frozenset({"", "0", "none", "default string", "to be filled by o.e.m.", "not specified", "unknown"})
_LOCALLY_GIVEN: Final = 0x02


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a machine.

    Attributes:
        serial: of the board; empty where it has none or does not tell us.
        machine_id: of the system's installation; a copied card has the same one.
        addresses: of network hardware, those that were burnt in; drawn or container-made ones change and say nothing.
        words: the machine in words, for people.
    """

    serial: str = ""
    machine_id: str = ""
    addresses: tuple[str, ...] = ()
    words: str = ""

    def is_another(self, before: "Machine") -> bool:
        """Whether this cannot be the machine that was seen before.

        The strongest thing that both have decides: a board's serial, then its network hardware (one common address is
        enough, so that an adapter may be changed), then the system's id. What one of them lacks says nothing.
        """
        if self.serial and before.serial:
            return self.serial != before.serial
        if self.addresses and before.addresses:
            return not set(self.addresses) & set(before.addresses)
        return bool(self.machine_id and before.machine_id) and self.machine_id != before.machine_id


def this_machine(root: Path = Path("/")) -> Machine:
    """This machine, as the system's files tell; what cannot be read is left out."""
    serial = next((text for name in _SERIALS if (text := _text(root / name).lower()) not in _NONE), "")
    model = _text(root / "sys/firmware/devicetree/base/model") or _text(root / "sys/class/dmi/id/product_name")
    words = " ".join(filter(None, (model, platform.machine(), f"Python {platform.python_version()}")))
    return Machine(
        serial=serial,
        machine_id=_text(root / "etc/machine-id"),
        addresses=tuple(sorted(_addresses(root / "sys/class/net"))),
        words=words,
    )


def _addresses(folder: Path) -> Iterator[str]:
    try:
        cards = sorted(folder.iterdir())
    except OSError:
        return
    for card in cards:
        address = _text(card / "address").lower()
        digits = address.replace(":", "")
        if len(digits) != 12 or not set(digits) <= set("0123456789abcdef") or not int(digits, 16):
            continue
        if (card / "device").exists() and not int(digits[:2], 16) & _LOCALLY_GIVEN:
            yield address


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:256].decode("utf-8", "replace").strip(" \t\r\n\0")
    except OSError:
        return ""
