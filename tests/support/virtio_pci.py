"""A balloon driver over virtio-pci, played by hand through qtest (virtio 1.3, 4.1 and 5.5).

`VirtioPci` is the bus half: it finds the device, maps it, resets and starts it. `BalloonDriver` is
the other half and does what Linux's driver does, in the same order.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import IntEnum, IntFlag

from ballast_protocol.errors import InternalError, OperatorError, TimedOutError
from ballast_protocol.virtio.balloon import (
    DEVICE_ID,
    MAX_PFNS_PER_BUFFER,
    BalloonConfig,
    BalloonFeature,
    BalloonQueue,
    pack_statistics,
    queue_order,
)
from ballast_protocol.virtio.features import VirtioFeature
from support.driver import DriverQueue, Segment
from support.qtest import Qtest, SharedRam

VIRTIO_VENDOR = 0x1AF4
MODERN_BASE = 0x1040
BAR_WINDOW = 0xE000_0000
"""Where BARs go: nothing else of a q35 is there before firmware has run."""

BAR_SPACING = 1 << 20
WAIT_SECONDS = 20.0
POLL_SECONDS = 0.0005


async def until(condition: Callable[[], bool], what: str) -> None:
    """Let the daemon work until `condition` holds.

    Raises:
        TimedOutError: It does not within `WAIT_SECONDS`.
    """
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                if condition():
                    return
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise TimedOutError(f"this did not happen: {what}") from None


class Register(IntEnum):
    """Registers of the common configuration that are used here (4.1.4.3)."""

    DEVICE_FEATURE_SELECT = 0
    DEVICE_FEATURE = 4
    DRIVER_FEATURE_SELECT = 8
    DRIVER_FEATURE = 12
    DEVICE_STATUS = 20
    QUEUE_SELECT = 22
    QUEUE_SIZE = 24
    QUEUE_ENABLE = 28
    QUEUE_NOTIFY_OFF = 30
    QUEUE_DESC = 32
    QUEUE_DRIVER = 40
    QUEUE_DEVICE = 48


class Status(IntFlag):
    """`device_status` (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8


class Structure(IntEnum):
    """`cfg_type` of the capabilities that are used here (4.1.4)."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4


ISR_CONFIG_CHANGED = 2


async def setup_bridge(qtest: Qtest, slot: int, secondary_bus: int) -> None:
    """Do for a root port what firmware does: a bus behind it, and a window to its devices."""
    await qtest.write_config(0, slot, 0x18, secondary_bus << 16 | secondary_bus << 8)
    base, limit = BAR_WINDOW >> 16, (BAR_WINDOW + 16 * BAR_SPACING - 1) >> 16
    await qtest.write_config(0, slot, 0x20, (limit & 0xFFF0) << 16 | base & 0xFFF0)
    await qtest.write_config(0, slot, 0x04, 0x7)


class VirtioPci:
    """The balloon's registers.

    Attributes:
        bus: Its PCI bus.
        slot: Its slot.
    """

    def __init__(self, qtest: Qtest, bus: int, slot: int) -> None:
        self.bus = bus
        self.slot = slot
        self.qtest = qtest
        self._at: dict[Structure, int] = {}
        self._notify_multiplier = 0

    @classmethod
    async def find(cls, qtest: Qtest, bus: int = 0) -> VirtioPci:
        """Find the balloon on a bus and map it.

        Raises:
            InternalError: It is not there.
        """
        for slot in range(32):
            identity = await qtest.read_config(bus, slot, 0)
            if identity == (MODERN_BASE + DEVICE_ID) << 16 | VIRTIO_VENDOR:
                found = cls(qtest, bus, slot)
                await found._map()
                return found
        raise InternalError(f"there is no balloon on PCI bus {bus}")

    async def _map(self) -> None:
        for bar in range(6):
            await self._config(0x10 + 4 * bar, 0)
        offset = await self._read_config(0x34) & 0xFF
        while offset:
            header = await self._read_config(offset)
            if header & 0xFF == 0x09:
                await self._take_capability(offset, header >> 24)
            offset = header >> 8 & 0xFF
        await self._config(0x04, 0x6)

    async def _take_capability(self, offset: int, kind: int) -> None:
        if kind not in tuple(Structure):
            return
        bar = await self._read_config(offset + 4) & 0xFF
        start = BAR_WINDOW + bar * BAR_SPACING
        await self._config(0x10 + 4 * bar, start)
        self._at[Structure(kind)] = start + await self._read_config(offset + 8)
        if kind == Structure.NOTIFY:
            self._notify_multiplier = await self._read_config(offset + 16)

    async def _read_config(self, offset: int) -> int:
        return await self.qtest.read_config(self.bus, self.slot, offset)

    async def _config(self, offset: int, value: int) -> None:
        await self.qtest.write_config(self.bus, self.slot, offset, value)

    async def _get(self, register: Register, size: int) -> int:
        return await self.qtest.read(self._at[Structure.COMMON] + register, size)

    async def _set(self, register: Register, size: int, value: int) -> None:
        await self.qtest.write(self._at[Structure.COMMON] + register, size, value)

    async def reset(self) -> None:
        """Reset the device and wait until it says so."""
        await self._set(Register.DEVICE_STATUS, 1, 0)
        assert await self._get(Register.DEVICE_STATUS, 1) == 0

    async def negotiate(self, wanted: int) -> int:
        """Accept those of the features `wanted` that are offered, and return them."""
        await self._set(Register.DEVICE_STATUS, 1, Status.ACKNOWLEDGE | Status.DRIVER)
        offered = 0
        for half in range(2):
            await self._set(Register.DEVICE_FEATURE_SELECT, 4, half)
            offered |= await self._get(Register.DEVICE_FEATURE, 4) << 32 * half
        accepted = offered & wanted
        for half in range(2):
            await self._set(Register.DRIVER_FEATURE_SELECT, 4, half)
            await self._set(Register.DRIVER_FEATURE, 4, accepted >> 32 * half & 0xFFFF_FFFF)
        status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
        await self._set(Register.DEVICE_STATUS, 1, status)
        assert await self._get(Register.DEVICE_STATUS, 1) & Status.FEATURES_OK
        return accepted

    async def enable_queue(self, index: int, queue: DriverQueue) -> int:
        """Tell the device where a queue is; return the address of its doorbell."""
        await self._set(Register.QUEUE_SELECT, 2, index)
        assert await self._get(Register.QUEUE_SIZE, 2) == queue.size
        for register, address in (
            (Register.QUEUE_DESC, queue.descriptors),
            (Register.QUEUE_DRIVER, queue.avail),
            (Register.QUEUE_DEVICE, queue.used),
        ):
            await self._set(register, 4, address & 0xFFFF_FFFF)
            await self.qtest.write(self._at[Structure.COMMON] + register + 4, 4, address >> 32)
        await self._set(Register.QUEUE_ENABLE, 2, 1)
        number = await self._get(Register.QUEUE_NOTIFY_OFF, 2)
        return self._at[Structure.NOTIFY] + number * self._notify_multiplier

    async def start(self) -> None:
        """Set DRIVER_OK: from here on the device works."""
        status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
        await self._set(Register.DEVICE_STATUS, 1, status)

    async def config_changed(self) -> bool:
        """Read, and by that clear, whether the device has announced a change of its config."""
        return bool(await self.qtest.read(self._at[Structure.ISR], 1) & ISR_CONFIG_CHANGED)

    async def read_config(self) -> BalloonConfig:
        """Read the balloon's config space, one field after the other."""
        fields = [await self.qtest.read(self._at[Structure.DEVICE] + at, 4) for at in (0, 4, 8, 12)]
        return BalloonConfig(*fields)

    async def read_num_pages(self) -> int:
        """Read how many pages the device wants."""
        return await self.qtest.read(self._at[Structure.DEVICE], 4)

    async def write_actual(self, pages: int) -> None:
        """Say how many pages have been given up."""
        await self.qtest.write(self._at[Structure.DEVICE] + 4, 4, pages)

    async def write_poison(self, pattern: int) -> None:
        """Say what free pages are filled with."""
        await self.qtest.write(self._at[Structure.DEVICE] + 12, 4, pattern)


LINUX_FEATURES = int(
    VirtioFeature.VERSION_1
    | VirtioFeature.EVENT_IDX
    | VirtioFeature.INDIRECT_DESC
    | BalloonFeature.MUST_TELL_HOST
    | BalloonFeature.STATS_VQ
    | BalloonFeature.FREE_PAGE_HINT
    | BalloonFeature.PAGE_REPORTING
    | BalloonFeature.DEFLATE_ON_OOM
)
"""What a Linux that does not poison free pages accepts."""


class BalloonDriver:
    """A driver that obeys at once.

    Attributes:
        pci: The device.
        features: What was negotiated.
        given: The pages given up, oldest first.
    """

    def __init__(self, pci: VirtioPci, ram: SharedRam, features: int = LINUX_FEATURES) -> None:
        self.pci = pci
        self.features = features
        self.given: list[int] = []
        self.ram = ram
        self._queues: dict[BalloonQueue, DriverQueue] = {}
        self._doorbells: dict[BalloonQueue, int] = {}
        self._next_page = ram.page_numbers(1)[0]
        self._is_obeying = False
        self._is_due = False

    async def start(self, *, poison: int | None = None) -> None:
        """Reset, negotiate, set the queues up, send first statistics, start."""
        await self.pci.reset()
        self.ram.free_scratch()
        self.given.clear()
        self.features = await self.pci.negotiate(self.features)
        event_idx = bool(self.features & VirtioFeature.EVENT_IDX)
        for index, role in enumerate(queue_order(self.features)):
            queue = DriverQueue(self.ram, 128, event_idx=event_idx)
            self._queues[role] = queue
            self._doorbells[role] = await self.pci.enable_queue(index, queue)
        if BalloonQueue.STATS in self._queues:
            await self.send_statistics([(4, 1 << 20)])
        if poison is not None:
            await self.pci.write_poison(poison)
        await self.pci.start()
        self._is_due = True

    async def _obey(self) -> None:
        """Give up or take back pages until the balloon has the size that the device wants."""
        while self._is_obeying:
            wanted = await self.pci.read_num_pages()
            if wanted == len(self.given):
                self._is_due = False
                return
            if wanted > len(self.given):
                await self._inflate(min(wanted - len(self.given), MAX_PFNS_PER_BUFFER))
            else:
                await self._deflate(min(len(self.given) - wanted, MAX_PFNS_PER_BUFFER))
            await self.pci.write_actual(len(self.given))

    @asynccontextmanager
    async def obeying(self) -> AsyncIterator[None]:
        """Obey in the background: after a start, and when the device says its config has changed.

        As in a guest's CPU, work that was under way at the end goes on at the next time; without
        such work nothing is read until the device asks for it.
        """
        self._is_obeying = True
        task = asyncio.create_task(self._obey_interrupts())
        try:
            yield
        finally:
            # Not cancelled: an answer that nobody waits for would be taken for the next one's.
            self._is_obeying = False
            await task

    async def _obey_interrupts(self) -> None:
        while self._is_obeying:
            self._is_due |= await self.pci.config_changed()
            if self._is_due:
                await self._obey()
            await asyncio.sleep(POLL_SECONDS)

    async def leave(self) -> None:
        """Do what an unbound driver does: take everything back, then reset the device."""
        while self.given:
            await self._deflate(min(len(self.given), MAX_PFNS_PER_BUFFER))
        await self.pci.write_actual(0)
        await self.pci.reset()

    async def _inflate(self, count: int) -> None:
        pages = [self._next_page - number for number in range(count)]
        self._next_page -= count
        await self.send(BalloonQueue.INFLATE, struct.pack(f"<{count}I", *pages))
        self.given += pages

    async def _deflate(self, count: int) -> None:
        pages = self.given[-count:]
        del self.given[-count:]
        await self.send(BalloonQueue.DEFLATE, struct.pack(f"<{count}I", *reversed(pages)))
        self._next_page += count

    async def move(self, old: int, new: int) -> None:
        """Do what compaction does with a page of the balloon: first give `new`, then take `old`."""
        self.given[self.given.index(old)] = new
        await self.send(BalloonQueue.INFLATE, struct.pack("<I", new))
        await self.send(BalloonQueue.DEFLATE, struct.pack("<I", old))

    async def send(self, role: BalloonQueue, data: bytes) -> None:
        """Send a buffer and wait until the device has returned it."""
        self._queues[role].add_out(data)
        await self._kick(role)
        await self._returned(role)

    async def report(self, *free: Segment) -> None:
        """Report free memory and wait until the device has returned it."""
        self._queues[BalloonQueue.REPORTING].add(into=free, indirect=True)
        await self._kick(BalloonQueue.REPORTING)
        await self._returned(BalloonQueue.REPORTING)

    async def hint(self, free: Segment) -> None:
        """Hint at free memory and wait until the device has returned it."""
        self._queues[BalloonQueue.FREE_PAGE_HINT].add(into=[free])
        await self._kick(BalloonQueue.FREE_PAGE_HINT)
        await self._returned(BalloonQueue.FREE_PAGE_HINT)

    async def send_statistics(self, values: list[tuple[int, int]]) -> None:
        """Send statistics, which the device keeps until it wants newer ones."""
        self._queues[BalloonQueue.STATS].add_out(pack_statistics(values))
        await self._kick(BalloonQueue.STATS)

    async def statistics_wanted(self) -> None:
        """Wait until the device returns the statistics that it has."""
        await self._returned(BalloonQueue.STATS)

    async def ring(self, role: BalloonQueue) -> None:
        """Ring a queue's doorbell, whether the device wants to hear it or not."""
        await self.pci.qtest.write(self._doorbells[role], 2, 0)

    async def _kick(self, role: BalloonQueue) -> None:
        if self._queues[role].should_kick():
            await self.ring(role)

    async def _returned(self, role: BalloonQueue) -> None:
        queue, qtest = self._queues[role], self.pci.qtest
        await until(
            lambda: queue.used_waiting > 0 or qtest.status is not None,
            f"the {role.value} buffer comes back",
        )
        if not queue.collect():
            raise OperatorError(f"QEMU is gone, and with it a {role.value} buffer")
