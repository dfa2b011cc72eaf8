"""Powers of a device in its states, from its description: modelled, never measured."""

import logging
from functools import cache

from devices.device import Device
from devices.errors import DeviceError
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

    A `HYBRID_DEVICE` that names nothing is logged and passed over: no request fails for want of an estimate.
    """
    from devices.machine import interface, this_device

    try:
        device = this_device()
    except DeviceError as error:
        logging.getLogger("hybrid.cost").warning("energy.device_unknown %s", error)
        return GENERIC_POWER
    return GENERIC_POWER if device is None else power_of(device, interface())
