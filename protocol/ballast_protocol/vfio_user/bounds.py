"""Whether a client keeps to the frame, and asks for what exists and was agreed on."""

from __future__ import annotations

import errno

from ballast_protocol.errors import MalformedError
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.capabilities import EffectiveCapabilities
from ballast_protocol.vfio_user.codes import DeviceFlag, HeaderFlag, RegionFlag
from ballast_protocol.vfio_user.device import Device
from ballast_protocol.vfio_user.events import Event, RefusalError
from ballast_protocol.vfio_user.message import Header

# Inverting an IntFlag forgets the bits that it does not name, so masks are plain numbers here.
_TYPE_MASK = int(HeaderFlag.TYPE_MASK)
_COMMAND_FLAGS = int(HeaderFlag.NO_REPLY)
_REPLY_FLAGS = int(HeaderFlag.REPLY | HeaderFlag.ERROR)


def check_frame(header: Header, max_payload: int) -> None:
    """Pass a header that is one of the protocol's, of a message that is not too long.

    Args:
        header: The header.
        max_payload: Bytes that may follow it.

    Raises:
        MalformedError: The connection cannot go on after it.
    """
    kind, flags = int(header.flags) & _TYPE_MASK, int(header.flags)
    if kind not in (HeaderFlag.COMMAND, HeaderFlag.REPLY):
        raise MalformedError(f"flags {flags:#x} are neither a command's nor a reply's")
    if flags & ~(_REPLY_FLAGS if kind else _COMMAND_FLAGS):
        raise MalformedError(f"flags {flags:#x} have bits that do not belong")
    if not Header.SIZE <= header.size <= Header.SIZE + max_payload:
        raise MalformedError(
            f"a message of {header.size} bytes, not {Header.SIZE} to {Header.SIZE + max_payload}"
        )


def check_event(event: Event, device: Device, limits: EffectiveCapabilities) -> None:
    """Pass an event that the device can be given.

    Raises:
        RefusalError: It is to be answered with this errno instead.
    """
    match event:
        case events.GetRegionInfo(index) | events.GetRegionIoFds(index):
            device.check_region(index)
        case events.GetIrqInfo(index) | events.DisableIrqs(index):
            device.check_irq_type(index)
        case events.SetIrqEventfds(index, start, count, action):
            device.check_irqs(index, start, count, action, eventfds=True)
        case events.ActOnIrqs(index, start, count, action):
            device.check_irqs(index, start, count, action)
        case events.RegionRead(region, offset, count):
            _check_access(device, limits, (region, offset, count), RegionFlag.READ)
        case events.RegionWrite(region, offset, data):
            _check_access(device, limits, (region, offset, len(data)), RegionFlag.WRITE)
        case events.RegionWriteMulti(writes):
            if not limits.write_multiple:
                raise RefusalError(errno.ENOTSUP, "write_multiple was not agreed on")
            for write in writes:
                check_event(write, device, limits)
        case events.DeviceReset() if not device.flags & DeviceFlag.RESET:
            raise RefusalError(errno.ENOTSUP, "the device cannot be reset")
        case _:
            pass


def _check_access(
    device: Device, limits: EffectiveCapabilities, access: tuple[int, int, int], right: RegionFlag
) -> None:
    if access[2] > limits.max_data_xfer_size:
        raise RefusalError(errno.E2BIG, f"{access[2]} bytes at once")
    device.check_access(*access, right)
