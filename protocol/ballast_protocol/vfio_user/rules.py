"""Every message of a client in one table: size, descriptors, and how it is answered.

The connection looks rules up here; nothing in this module knows about a connection's state or
about the device. A decoder raises what is wrong with a message that is whole: `RefusalError` with
the errno to answer, `MalformedError` for EINVAL.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ballast_protocol.errors import MalformedError
from ballast_protocol.vfio_user import events
from ballast_protocol.vfio_user.codes import (
    Command,
    DmaMapFlag,
    DmaUnmapFlag,
    FeatureFlag,
    IrqSetFlag,
)
from ballast_protocol.vfio_user.events import Event, IrqAction, RefusalError
from ballast_protocol.vfio_user.message import (
    DIRTY_BITMAP_SIZE,
    MAX_FDS,
    MAX_VECTORS,
    MAX_WRITES,
    MULTI_DATA_SIZE,
    DeviceInfo,
    DirtyPages,
    DmaAccess,
    DmaMapping,
    DmaUnmapping,
    FeatureHead,
    IrqInfo,
    IrqSet,
    MigrationData,
    RegionAccess,
    RegionInfo,
    RegionIoFds,
    VersionHead,
    WriteCount,
)


class Reply(Enum):
    """How a command is answered when all went well."""

    ECHO = "the first bytes of its own payload"
    DATA = "those, and the bytes read"
    DESCRIPTION = "what it asked about"
    NEVER = "nothing: it is always refused"


Decoder = Callable[[bytes, int], Event]
"""Makes an event of a payload and the number of descriptors that came with it."""


@dataclass(frozen=True)
class Rule:
    """What is known of one command.

    Attributes:
        decode: Makes the event.
        sizes: The smallest and the largest payload, in bytes; None where the message's own bound
            will do.
        fds: The most file descriptors.
        reply: How it is answered.
        echo: How many bytes of its payload the reply begins with.
    """

    decode: Decoder
    sizes: tuple[int, int | None] = (0, 0)
    fds: int = 0
    reply: Reply = Reply.ECHO
    echo: int = 0


def _plain(event: Event) -> Decoder:
    """Decode a command that says nothing beyond its code."""
    return lambda _payload, _fds: event


def _unserved(reason: str, error: int = errno.ENOTSUP) -> Decoder:
    def decode(_payload: bytes, _fds: int) -> Event:
        raise RefusalError(error, reason)

    return decode


def _room(argsz: int, least: int) -> int:
    if argsz < least:
        raise MalformedError(f"room for {argsz} bytes, where the reply has at least {least}")
    return argsz


def _dma_map(payload: bytes, fds: int) -> Event:
    found = DmaMapping.unpack(payload)
    _room(found.argsz, DmaMapping.SIZE)
    unknown = int(found.flags) & ~int(DmaMapFlag.READ | DmaMapFlag.WRITE)
    if unknown or not found.flags:
        raise MalformedError(f"flags {int(found.flags):#x} are no rights")
    for start, end in ((found.address, 1 << 64), (found.offset, 1 << 63)):
        if not found.size or start + found.size > end:
            raise MalformedError(f"a range is empty or wraps around: {start:#x}+{found.size:#x}")
    return events.DmaMap(found.address, found.size, found.offset, found.flags, has_fd=fds > 0)


def _dma_unmap(payload: bytes, _fds: int) -> Event:
    found = DmaUnmapping.unpack(payload)
    if found.flags & DmaUnmapFlag.GET_DIRTY_BITMAP:
        raise RefusalError(errno.ENOTSUP, "nobody has kept a dirty bitmap")
    if len(payload) != DmaUnmapping.SIZE:
        raise MalformedError(f"a payload of {len(payload)} bytes, not {DmaUnmapping.SIZE}")
    _room(found.argsz, DmaUnmapping.SIZE)
    if found.flags == DmaUnmapFlag.ALL:
        if found.address or found.size:
            raise MalformedError(f"everything, but also {found.address:#x}+{found.size:#x}")
        return events.DmaUnmapAll()
    if found.flags:
        raise MalformedError(f"unknown flags {int(found.flags):#x}")
    return events.DmaUnmap(found.address, found.size)


def _get_info(payload: bytes, _fds: int) -> Event:
    _room(DeviceInfo.unpack(payload).argsz, DeviceInfo.SIZE)
    return events.GetInfo()


def _get_region_info(payload: bytes, _fds: int) -> Event:
    found = RegionInfo.unpack(payload)
    return events.GetRegionInfo(found.index, _room(found.argsz, RegionInfo.SIZE))


def _get_region_io_fds(payload: bytes, _fds: int) -> Event:
    found = RegionIoFds.unpack(payload)
    if found.flags or found.count:
        raise MalformedError(f"flags {found.flags:#x} and count {found.count} are not 0")
    return events.GetRegionIoFds(found.index, _room(found.argsz, RegionIoFds.SIZE))


def _get_irq_info(payload: bytes, _fds: int) -> Event:
    found = IrqInfo.unpack(payload)
    _room(found.argsz, IrqInfo.SIZE)
    return events.GetIrqInfo(found.index)


_ACTIONS = {
    IrqSetFlag.ACTION_MASK: IrqAction.MASK,
    IrqSetFlag.ACTION_UNMASK: IrqAction.UNMASK,
    IrqSetFlag.ACTION_TRIGGER: IrqAction.TRIGGER,
}
_DATA_MASK = int(IrqSetFlag.DATA_NONE | IrqSetFlag.DATA_BOOL | IrqSetFlag.DATA_EVENTFD)


def _set_irqs(payload: bytes, fds: int) -> Event:
    found = IrqSet.unpack(payload)
    _room(found.argsz, IrqSet.SIZE)
    data = int(found.flags) & _DATA_MASK
    action = _ACTIONS.get(IrqSetFlag(int(found.flags) & ~_DATA_MASK))
    if action is None:
        raise MalformedError(f"flags {int(found.flags):#x} name no single action")
    if data == IrqSetFlag.DATA_EVENTFD:
        return _set_irq_eventfds(found, action, payload, fds)
    if fds:
        raise MalformedError(f"{fds} file descriptors, but no eventfds are set")
    if data == IrqSetFlag.DATA_BOOL:
        return _act_on_chosen_irqs(found, action, payload)
    if data != IrqSetFlag.DATA_NONE:
        raise MalformedError(f"flags {int(found.flags):#x} name no single kind of data")
    _expect_size(payload, IrqSet.SIZE)
    if found.count:
        return events.ActOnIrqs(found.index, found.start, found.count, action)
    if found.start or action is not IrqAction.TRIGGER:
        raise MalformedError(f"{action.value} no interrupt, from {found.start}")
    return events.DisableIrqs(found.index)


def _set_irq_eventfds(found: IrqSet, action: IrqAction, payload: bytes, fds: int) -> Event:
    _expect_size(payload, IrqSet.SIZE)
    if not found.count or fds not in (0, found.count):
        raise MalformedError(f"{fds} file descriptors for {found.count} interrupts")
    return events.SetIrqEventfds(found.index, found.start, found.count, action, has_fds=fds > 0)


def _act_on_chosen_irqs(found: IrqSet, action: IrqAction, payload: bytes) -> Event:
    _expect_size(payload, IrqSet.SIZE + found.count)
    if not found.count:
        raise MalformedError("no interrupt to choose from")
    booleans = payload[IrqSet.SIZE :]
    if max(booleans) > 1:
        raise MalformedError("a boolean is neither 0 nor 1")
    chosen = tuple(map(bool, booleans))
    return events.ActOnIrqs(found.index, found.start, found.count, action, chosen)


def _expect_size(payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise MalformedError(f"a payload of {len(payload)} bytes, not {size}")


def _region_read(payload: bytes, _fds: int) -> Event:
    found = RegionAccess.unpack(payload)
    return events.RegionRead(found.region, found.offset, found.count)


def _region_write(payload: bytes, _fds: int) -> Event:
    found = RegionAccess.unpack(payload)
    _expect_size(payload, RegionAccess.SIZE + found.count)
    return events.RegionWrite(found.region, found.offset, payload[RegionAccess.SIZE :])


_MULTI_SIZE = RegionAccess.SIZE + MULTI_DATA_SIZE


def _region_write_multi(payload: bytes, _fds: int) -> Event:
    count = WriteCount.unpack(payload).count
    if count > MAX_WRITES:
        raise MalformedError(f"{count} writes, {MAX_WRITES} are the most")
    _expect_size(payload, WriteCount.SIZE + count * _MULTI_SIZE)
    starts = range(WriteCount.SIZE, len(payload), _MULTI_SIZE)
    return events.RegionWriteMulti(tuple(_one_write(payload, start) for start in starts))


def _one_write(payload: bytes, start: int) -> events.RegionWrite:
    found = RegionAccess.unpack(payload, start)
    if found.count > MULTI_DATA_SIZE:
        raise MalformedError(f"a write of {found.count} bytes, {MULTI_DATA_SIZE} are the most")
    data = payload[start + RegionAccess.SIZE :][: found.count]
    return events.RegionWrite(found.region, found.offset, data)


def _device_feature(payload: bytes, _fds: int) -> Event:
    flags = FeatureHead.unpack(payload).flags
    methods = flags & (FeatureFlag.GET | FeatureFlag.SET)
    both = methods == FeatureFlag.GET | FeatureFlag.SET
    if not flags & FeatureFlag.PROBE and (both or not methods):
        raise MalformedError(f"flags {int(flags):#x} name no single method")
    raise RefusalError(errno.ENOTSUP, f"feature {int(flags) & 0xFFFF} is not served")


_NO_MIGRATION = _unserved("the device cannot migrate")

UNKNOWN = Rule(_unserved("no such command"), (0, None), MAX_FDS, Reply.NEVER)
"""For a code that no specification has: read it, drop it, refuse it."""

RULES: dict[int, Rule] = {
    # The first one is the connection's own affair and never comes here.
    Command.VERSION: Rule(
        _unserved("the version is agreed on already", errno.EINVAL),
        (VersionHead.SIZE, None),
        reply=Reply.DESCRIPTION,
    ),
    Command.DMA_MAP: Rule(_dma_map, (DmaMapping.SIZE, DmaMapping.SIZE), fds=1),
    Command.DMA_UNMAP: Rule(
        _dma_unmap,
        (DmaUnmapping.SIZE, DmaUnmapping.SIZE + DIRTY_BITMAP_SIZE),
        echo=DmaUnmapping.SIZE,
    ),
    Command.DEVICE_GET_INFO: Rule(
        _get_info, (DeviceInfo.SIZE, DeviceInfo.SIZE), reply=Reply.DESCRIPTION
    ),
    Command.DEVICE_GET_REGION_INFO: Rule(
        _get_region_info, (RegionInfo.SIZE, RegionInfo.SIZE), reply=Reply.DESCRIPTION
    ),
    Command.DEVICE_GET_REGION_IO_FDS: Rule(
        _get_region_io_fds, (RegionIoFds.SIZE, RegionIoFds.SIZE), reply=Reply.DESCRIPTION
    ),
    Command.DEVICE_GET_IRQ_INFO: Rule(
        _get_irq_info, (IrqInfo.SIZE, IrqInfo.SIZE), reply=Reply.DESCRIPTION
    ),
    Command.DEVICE_SET_IRQS: Rule(_set_irqs, (IrqSet.SIZE, IrqSet.SIZE + MAX_VECTORS), fds=MAX_FDS),
    Command.REGION_READ: Rule(
        _region_read,
        (RegionAccess.SIZE, RegionAccess.SIZE),
        reply=Reply.DATA,
        echo=RegionAccess.SIZE,
    ),
    Command.REGION_WRITE: Rule(_region_write, (RegionAccess.SIZE, None), echo=RegionAccess.SIZE),
    Command.DMA_READ: Rule(
        _unserved("only the server sends this"), (DmaAccess.SIZE, None), reply=Reply.NEVER
    ),
    Command.DMA_WRITE: Rule(
        _unserved("only the server sends this"), (DmaAccess.SIZE, None), reply=Reply.NEVER
    ),
    Command.DEVICE_RESET: Rule(_plain(events.DeviceReset())),
    Command.DIRTY_PAGES: Rule(
        _unserved("writes are not logged"), (DirtyPages.SIZE, None), reply=Reply.NEVER
    ),
    Command.REGION_WRITE_MULTI: Rule(
        _region_write_multi,
        (WriteCount.SIZE, WriteCount.SIZE + MAX_WRITES * _MULTI_SIZE),
        echo=WriteCount.SIZE,
    ),
    Command.DEVICE_FEATURE: Rule(_device_feature, (FeatureHead.SIZE, None), reply=Reply.NEVER),
    Command.MIG_DATA_READ: Rule(
        _NO_MIGRATION, (MigrationData.SIZE, MigrationData.SIZE), reply=Reply.NEVER
    ),
    Command.MIG_DATA_WRITE: Rule(_NO_MIGRATION, (MigrationData.SIZE, None), reply=Reply.NEVER),
}

MAX_CONTROL_SIZE = max(most for rule in RULES.values() if (most := rule.sizes[1]) is not None)
"""Bytes of the largest payload that carries no data of a region or of memory."""


def decode(command: int, payload: bytes, fds: int) -> Event:
    """Make an event of a whole message, by its rule.

    Raises:
        RefusalError: It is to be answered with this errno.
        MalformedError: It is to be answered with EINVAL.
    """
    rule = RULES.get(command, UNKNOWN)
    least, most = rule.sizes
    if len(payload) < least or (most is not None and len(payload) > most):
        raise MalformedError(f"a payload of {len(payload)} bytes, not {least} to {most or 'any'}")
    if fds > rule.fds:
        raise MalformedError(f"{fds} file descriptors came, {rule.fds} are the most")
    return rule.decode(payload, fds)
