"""A balloon behind vfio-user, and a QEMU-like client with a guest's RAM and virtio-pci driver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ballast.balloon.device import BalloonDevice
from ballast.balloon.features import DEFAULT_FEATURES
from ballast.memory.reclaim import Discard, discard
from ballast.transport.vfio_user.server import VfioUserServer
from ballast.transport.vfio_user.session import Session
from ballast.virtio_pci.layout import Variant
from ballast_protocol.vfio_user.codes import Command as Message
from ballast_protocol.vfio_user.codes import HeaderFlag, PciIrq, PciRegion
from ballast_protocol.vfio_user.message import RegionAccess, pack_message
from ballast_protocol.virtio.balloon import (
    BalloonConfig,
    BalloonFeature,
    BalloonQueue,
    pack_statistics,
    queue_order,
)
from ballast_protocol.virtio.features import VirtioFeature
from ballast_protocol.virtio.pci.config_space import CapabilityId, Command, Header, Msix
from ballast_protocol.virtio.pci.structures import Common, DeviceStatus, StructureType
from ballast_protocol.virtio.ring import UsedElement
from support.backend import Listener, until
from support.driver import DriverQueue, GuestRam, RamBlock, Segment
from support.machine import RAM_BYTES
from support.pages import pfn_array
from support.vfio_client import VfioClient

CONFIG_VECTOR = 0
MSIX_ENABLE = 0x8000


@dataclass
class VfioBackend:
    """A balloon that listens for vfio-user clients.

    Attributes:
        path: Where a client connects.
        device: The device.
        server: Its transport.
        listener: What it told.
    """

    path: Path
    device: BalloonDevice
    server: VfioUserServer
    listener: Listener

    @property
    def held(self) -> set[int]:
        """The pages that are in the ledger."""
        runs = self.device.pages.ledger.runs()
        return {page for first, count in runs for page in range(first, first + count)}

    @property
    def session(self) -> Session:
        """The present connection."""
        session = self.server.session
        assert isinstance(session, Session)
        return session

    @property
    def active(self) -> object:
        """The queues that are served now."""
        rings: Any = self.session.status()["rings"]
        return [ring["index"] for ring in rings]

    async def alone(self) -> None:
        """Wait until the server has noticed that its client is gone."""
        await until(lambda: self.server.session is None)


@asynccontextmanager
async def vfio_backend_at(
    path: Path,
    variant: Variant = Variant.MSIX_MAPPED,
    *,
    features: BalloonFeature = DEFAULT_FEATURES,
    discard_piece: Discard = discard,
) -> AsyncIterator[VfioBackend]:
    """Serve a balloon at `path` while the context lasts."""
    listener = Listener()
    device = BalloonDevice(listener, balloon_features=features, discard_piece=discard_piece)
    server = VfioUserServer(device, path=path, variant=variant)
    listener.transport = server
    await server.start()
    try:
        yield VfioBackend(path, device, server, listener)
    finally:
        await server.close()


@dataclass
class VfioMachine:
    """One guest.

    Attributes:
        client: Its QEMU.
        ram: Its memory.
        queues: Its balloon driver's queues, by what they carry.
        features: What its driver accepted.
    """

    client: VfioClient
    ram: GuestRam
    queues: dict[BalloonQueue, DriverQueue] = field(default_factory=dict)
    features: int = 0
    _places: dict[int, tuple[int, int]] = field(default_factory=dict)
    _msix: int = 0

    # Registers

    def find_structures(self) -> None:
        config = self.client.config
        at = config[Header.CAPABILITIES.offset]
        while at:
            if config[at] == CapabilityId.VENDOR:
                place = config[at + 4], int.from_bytes(config[at + 8 : at + 12], "little")
                self._places.setdefault(config[at + 3], place)
            elif config[at] == CapabilityId.MSIX:
                self._msix = at
            at = config[at + 1]

    async def read(self, kind: StructureType, offset: int, size: int) -> int:
        bar, start = self._places[kind]
        return int.from_bytes(await self.client.read(bar, start + offset, size), "little")

    async def write(self, kind: StructureType, offset: int, size: int, value: int) -> None:
        bar, start = self._places[kind]
        await self.client.write(bar, start + offset, value.to_bytes(size, "little"))

    def posted(self, kind: StructureType, offset: int, size: int, value: int) -> bytes:
        """Return the message of a write that is not to be answered."""
        bar, start = self._places[kind]
        payload = RegionAccess(start + offset, bar, size).pack() + value.to_bytes(size, "little")
        return pack_message(0, Message.REGION_WRITE, payload, HeaderFlag.NO_REPLY)

    async def get(self, register: Common) -> int:
        return await self.read(StructureType.COMMON, register.offset, register.width)

    async def put(self, register: Common, value: int) -> None:
        await self.write(StructureType.COMMON, register.offset, register.width, value)

    async def add_status(self, bits: int) -> None:
        await self.put(Common.DEVICE_STATUS, await self.get(Common.DEVICE_STATUS) | bits)

    async def set_command(self, command: int) -> None:
        place = Header.COMMAND.offset
        await self.client.write(PciRegion.CONFIG, place, command.to_bytes(2, "little"))

    async def settled(self) -> None:
        """Return when everything sent before has been taken."""
        await self.get(Common.DEVICE_STATUS)

    # What Linux does, in its order

    async def reset_device(self) -> None:
        await self.put(Common.DEVICE_STATUS, 0)
        assert await self.get(Common.DEVICE_STATUS) == 0

    async def offered(self) -> int:
        await self.put(Common.DEVICE_FEATURE_SELECT, 0)
        low = await self.get(Common.DEVICE_FEATURE)
        await self.put(Common.DEVICE_FEATURE_SELECT, 1)
        return low | await self.get(Common.DEVICE_FEATURE) << 32

    async def negotiate(self, unwanted: int = 0) -> None:
        """Go as far as FEATURES_OK."""
        await self.reset_device()
        await self.set_command(Command.MEMORY | Command.BUS_MASTER)
        await self.add_status(DeviceStatus.ACKNOWLEDGE)
        await self.add_status(DeviceStatus.DRIVER)
        self.features = await self.offered() & ~unwanted
        for word in (0, 1):
            await self.put(Common.DRIVER_FEATURE_SELECT, word)
            await self.put(Common.DRIVER_FEATURE, self.features >> 32 * word & 0xFFFF_FFFF)
        await self.add_status(DeviceStatus.FEATURES_OK)
        assert await self.get(Common.DEVICE_STATUS) & DeviceStatus.FEATURES_OK

    async def enable_interrupts(self) -> None:
        if self._msix:
            place = self._msix + Msix.CONTROL.offset
            await self.client.write(PciRegion.CONFIG, place, MSIX_ENABLE.to_bytes(2, "little"))
            await self.client.enable_msix(self.client.msix_size)
            await self.put(Common.CONFIG_MSIX_VECTOR, CONFIG_VECTOR)

    async def set_up_queue(self, index: int, queue: DriverQueue) -> None:
        await self.put(Common.QUEUE_SELECT, index)
        assert await self.get(Common.QUEUE_SIZE) == queue.size
        for low, high, address in (
            (Common.QUEUE_DESC_LOW, Common.QUEUE_DESC_HIGH, queue.descriptors),
            (Common.QUEUE_DRIVER_LOW, Common.QUEUE_DRIVER_HIGH, queue.avail),
            (Common.QUEUE_DEVICE_LOW, Common.QUEUE_DEVICE_HIGH, queue.used),
        ):
            await self.put(low, address & 0xFFFF_FFFF)
            await self.put(high, address >> 32)
        if self._msix:
            await self.put(Common.QUEUE_MSIX_VECTOR, index + 1)
            assert await self.get(Common.QUEUE_MSIX_VECTOR) == index + 1
        await self.put(Common.QUEUE_ENABLE, 1)

    async def set_up(self, unwanted: int = 0) -> None:
        """Go as far as one can without DRIVER_OK; the rings are where they were, and empty."""
        await self.negotiate(unwanted)
        await self.enable_interrupts()
        event_idx = bool(self.features & VirtioFeature.EVENT_IDX)
        for index, role in enumerate(queue_order(self.features)):
            queue = self.queues.get(role)
            if queue is None:
                queue = DriverQueue(self.ram, 128, event_idx=event_idx, slot_size=2048)
                self.queues[role] = queue
            queue.reset()
            await self.set_up_queue(index, queue)

    async def start(self, unwanted: int = 0) -> None:
        await self.set_up(unwanted)
        await self.add_status(DeviceStatus.DRIVER_OK)
        await self.settled()

    def successor(self, fresh: DriverQueue) -> bytes:
        """Return, in one breath, a reset and a driver that has one queue only."""
        status = Common.DEVICE_STATUS
        low, high = self.features & 0xFFFF_FFFF, self.features >> 32
        writes = [
            *((status, 0), (status, DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER)),
            *((Common.DRIVER_FEATURE_SELECT, 0), (Common.DRIVER_FEATURE, low)),
            *((Common.DRIVER_FEATURE_SELECT, 1), (Common.DRIVER_FEATURE, high)),
            (status, DeviceStatus.FEATURES_OK),
            *((Common.QUEUE_SELECT, 0), (Common.QUEUE_DESC_LOW, fresh.descriptors)),
            (Common.QUEUE_DRIVER_LOW, fresh.avail),
            (Common.QUEUE_DEVICE_LOW, fresh.used),
            *((Common.QUEUE_ENABLE, 1), (status, DeviceStatus.DRIVER_OK)),
        ]
        return b"".join(
            self.posted(StructureType.COMMON, register.offset, register.width, value)
            for register, value in writes
        )

    # The balloon

    def index(self, role: BalloonQueue) -> int:
        return queue_order(self.features).index(role)

    async def ring(self, role: BalloonQueue) -> None:
        """Ring a doorbell, whether the device wants to hear it or not."""
        index = self.index(role)
        await self.write(StructureType.NOTIFY, 4 * index, 2, index)

    async def interrupted(self, role: BalloonQueue) -> None:
        """Wait for a queue's interrupt and take it as a driver does."""
        if self._msix:
            await self.client.interrupted(self.index(role) + 1)
            return
        await self.client.interrupted(0, PciIrq.INTX)
        await self.read(StructureType.ISR, 0, 1)
        await self.client.end_intx()

    async def done(self, role: BalloonQueue) -> list[UsedElement]:
        """Kick a queue and wait until the device has returned all of its buffers."""
        queue = self.queues[role]
        if queue.should_kick():
            await self.ring(role)
        found = queue.collect()
        while queue.in_flight:
            await self.interrupted(role)
            found += queue.collect()
        return found

    async def inflate(self, *pfns: int) -> None:
        self.queues[BalloonQueue.INFLATE].add_out(pfn_array(pfns))
        await self.done(BalloonQueue.INFLATE)

    async def deflate(self, *pfns: int) -> None:
        self.queues[BalloonQueue.DEFLATE].add_out(pfn_array(pfns))
        await self.done(BalloonQueue.DEFLATE)

    async def report(self, first: int, count: int) -> None:
        into = [Segment(first * 4096, count * 4096)]
        self.queues[BalloonQueue.REPORTING].add(into=into, indirect=True)
        await self.done(BalloonQueue.REPORTING)

    async def offer_statistics(self, free_bytes: int) -> None:
        """Fill the statistics buffer; the device keeps it."""
        queue = self.queues[BalloonQueue.STATS]
        queue.collect()
        queue.add_out(pack_statistics([(4, free_bytes)]))
        if queue.should_kick():
            await self.ring(BalloonQueue.STATS)

    async def config(self) -> BalloonConfig:
        fields = [await self.read(StructureType.DEVICE, at, 4) for at in (0, 4, 8, 12)]
        return BalloonConfig(*fields)

    async def set_actual(self, pages: int) -> None:
        await self.write(StructureType.DEVICE, 4, 4, pages)


@asynccontextmanager
async def vfio_machine_at(
    path: Path, *, blocks: tuple[RamBlock, ...] = (RamBlock(0, RAM_BYTES),)
) -> AsyncIterator[VfioMachine]:
    """Connect a machine to the server at `path`; its device is plugged in, no driver runs."""
    with GuestRam.of(*blocks) as ram:
        async with await VfioClient.connect(path) as client:
            await client.realize(ram)
            machine = VfioMachine(client, ram)
            machine.find_structures()
            yield machine
