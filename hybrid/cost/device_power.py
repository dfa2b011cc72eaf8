"""Powers of a device in its states, from its description: modelled, never measured."""

from functools import cache

from devices.device import Device
from hybrid.cost.energy import GENERIC_POWER, Power


def power_of(device: Device, link: str) -> Power:
    """Watts of the whole device with one of its cores computing.

    Args:
        device: of the catalog, or of a file of the user's own.
        link: name of a link class or an interface: it says which radio sends.
    """
    radio = device.radio(link)
    idle_w = device.idle_w + radio.idle_w
    return Power(
        idle_w=idle_w,
        compute_w=idle_w + device.core_w,
        transmit_w=idle_w + radio.transmit_w,
        receive_w=idle_w + radio.receive_w,
        source=f"description of {device.name} on {link}, one core computing; modelled",
    )


@cache
def this_power() -> Power:
    """Powers of the machine that this process runs on, where the catalog knows it; else a generic one that says so.

    Raises:
        CatalogUnknown: `HYBRID_DEVICE` is neither a name of the catalog nor a file.
        CatalogInvalid: the file that it names does not say what it must.
    """
    from devices.machine import interface, this_device

    device = this_device()
    return GENERIC_POWER if device is None else power_of(device, interface())
