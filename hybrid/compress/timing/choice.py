"""Which way the device of a job is timed: here, emulated here, or by its own agent."""

from devices.device import Device
from devices.errors import EmulationUnavailable
from devices.lab.machine import Slowdown
from hybrid.compress.job import THIS, Job
from hybrid.compress.timing.agent_timer import on_agent
from hybrid.compress.timing.timer import DeviceTold, Here, Timer
from hybrid.cost.device_power import power_of, this_power


def timer_for(job: Job, *, factor: float | None = None) -> Timer:
    """What times for a job.

    Args:
        job: what is wanted.
        factor: how many times slower the device is, where an earlier call has measured it.

    Raises:
        CatalogUnknown: no machine of that name.
        EmulationUnavailable: a quota was asked for and is not allowed here.
        NotMeasurable: a device that cannot be reached in this way.
    """
    if job.device.startswith(("http://", "https://")):
        return on_agent(job.device, job.threads)
    if job.device == THIS:
        told = DeviceTold(name=THIS, kind="this machine", factor=1.0, threads=job.threads or _usable_cores())
        return Here(told=told, power=this_power())
    from devices.catalog.load import device

    return _emulated(device(job.device), job, factor)


def _emulated(device: Device, job: Job, factor: float | None) -> Here:
    from devices.lab.machine import emulated, host_slowdown_ratio

    factor = factor or max(1.0, device.factor_on(host_slowdown_ratio()))
    kernels = (
        f"{device.title} is emulated: the kernels are this machine's ({_processor()}), so only ratios between "
        "candidates were measured, and on the device itself they may differ, most of all those of int8"
    )
    power = power_of(device, job.link or (device.links[0] if device.links else "ethernet"))
    slowdown: Slowdown | None = None
    kind, n_cores = "", 1
    if job.emulation != "scaled":
        try:
            slowdown, how = emulated(device, "quota", factor, job.threads or None)
            kind, n_cores = how.kind, how.n_cores or 1
        except EmulationUnavailable:
            if job.emulation == "quota":
                raise
    if slowdown is None:
        remark = f"this machine's seconds in one thread, multiplied by {factor:.2f}"
        told = DeviceTold(
            name=device.name, kind="scaled", factor=factor, threads=job.threads or 1, remarks=(kernels, remark)
        )
        return Here(told=told, power=power, scale=factor)
    threads = job.threads or n_cores
    told = DeviceTold(name=device.name, kind=kind, factor=factor, threads=threads, remarks=(kernels,))
    return Here(told=told, power=power, slowdown=slowdown, budget_s=4.0)


def _usable_cores() -> int:
    from devices.machine import usable_cores

    return max(1, int(usable_cores()))


def _processor() -> str:
    from devices.machine import processor

    return processor()
