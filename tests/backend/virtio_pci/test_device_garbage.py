"""Whatever a client does, the function answers, keeps its own rules and can be reset."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ballast.virtio_pci.device import VirtioPci
from ballast.virtio_pci.effects import (
    DeviceReset,
    DriverReady,
    Effect,
    QueueEnabled,
    QueueNotified,
    QueueReset,
)
from ballast.virtio_pci.layout import CONFIG_REGION, Variant
from ballast_protocol.virtio.features import VirtioFeature
from ballast_protocol.virtio.pci.structures import NO_VECTOR, Common, DeviceStatus, StructureType
from support.pci_driver import FEATURES, QUEUE_SIZE, QUEUES, Device, PciDriver, function, write

U64 = st.integers(0, (1 << 64) - 1)
REGIONS = st.sampled_from([0, 0, 0, 0, 1, 2, 6, CONFIG_REGION, CONFIG_REGION, 8, 0xFFFF_FFFF])
PAGES = st.sampled_from([0, 0, 0x1000, 0x2000, 0x3000])
NEAR = st.builds(lambda page, offset: page + offset, PAGES, st.integers(0, 0x48))
OFFSETS = NEAR | st.integers(0, 0x100) | st.integers(0, 0x5000) | U64
SIZES = st.sampled_from([1, 2, 4, 8]) | st.integers(0, 300)
VALUES = st.sampled_from([0, 1, 2, 3, 0xB, 0xF, QUEUE_SIZE, NO_VECTOR, 0xFFFF_FFFF]) | U64


class Clients(RuleBasedStateMachine):
    """Random accesses between sensible ones; the transport's view is kept by the effects alone."""

    @initialize(variant=st.sampled_from(Variant))
    def plug(self, variant: Variant) -> None:
        self.device = Device()
        self.pci: VirtioPci = function(variant, self.device)
        self.driver = PciDriver(self.pci)
        self.fresh = self.pci.save()
        self.ready = False
        self.enabled: set[int] = set()

    def follow(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case DeviceReset():
                    self.ready, self.enabled = False, set()
                case DriverReady(features):
                    assert not self.ready
                    assert features & ~FEATURES == 0
                    assert features & VirtioFeature.VERSION_1
                    self.ready = True
                case QueueEnabled(index):
                    assert index not in self.enabled
                    self.enabled.add(index)
                case QueueReset(index):
                    self.enabled.remove(index)
                case QueueNotified(index):
                    assert self.ready
                    assert index in self.enabled

    @rule(region=REGIONS, offset=OFFSETS, size=SIZES)
    def read(self, region: int, offset: int, size: int) -> None:
        assert len(self.pci.read(region, offset, size)) == size

    @rule(region=REGIONS, offset=OFFSETS, size=SIZES, value=VALUES)
    def write(self, region: int, offset: int, size: int, value: int) -> None:
        data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self.follow(write(self.pci, region, offset, data))

    @rule(register=st.sampled_from(Common), value=VALUES)
    def write_register(self, register: Common, value: int) -> None:
        self.follow(self.driver.put(register, value & ((1 << 8 * register.width) - 1)))

    @rule(bar=st.integers(0, 7), offset=NEAR, length=st.sampled_from([0, 1, 2, 4, 8]), value=VALUES)
    def use_window(self, bar: int, offset: int, length: int, value: int) -> None:
        data = self.driver.aim(bar, offset, length)
        self.driver.config(data, 4)
        self.follow(self.driver.set_config(data, 4, value & 0xFFFF_FFFF))

    @rule(features=st.sampled_from([FEATURES, 1 << 32, FEATURES | 2, 0]))
    def negotiate(self, features: int) -> None:
        self.follow(self.driver.put(Common.DEVICE_STATUS, 0))
        self.follow(self.driver.set_command(0x6))
        self.driver.accept(features)
        self.follow(self.driver.put(Common.DEVICE_STATUS, 0xB))

    @rule(index=st.integers(0, QUEUES))
    def enable(self, index: int) -> None:
        self.follow(self.driver.enable_queue(index))

    @rule()
    def go(self) -> None:
        self.follow(self.driver.add_status(DeviceStatus.DRIVER_OK))

    @rule(index=st.integers(0, QUEUES))
    def interrupt(self, index: int) -> None:
        raised = self.pci.interrupt_for_queue(index)
        assert raised is None or self.pci.is_running

    @rule()
    def change_config(self) -> None:
        self.pci.config_changed()

    @rule()
    def break_down(self) -> None:
        self.pci.needs_reset()
        assert not self.pci.is_running

    @rule()
    def reset(self) -> None:
        self.follow(self.pci.reset())
        assert self.pci.save() == self.fresh

    @invariant()
    def nothing_forbidden_is_remembered(self) -> None:
        state = self.pci.save().common
        status = self.pci.status
        assert len(state.queues) == QUEUES
        assert bool(status & DeviceStatus.DRIVER_OK) is self.ready
        assert status & DeviceStatus.FEATURES_OK or not (status & DeviceStatus.DRIVER_OK)
        assert self.pci.features & ~FEATURES == 0
        for index, queue in enumerate(state.queues):
            assert queue.is_enabled is (index in self.enabled)
            assert 0 < queue.size <= QUEUE_SIZE
            assert queue.size & (queue.size - 1) == 0
            assert max(queue.desc_address, queue.driver_address, queue.device_address) < 1 << 64
        for vector in (state.config_vector, *(queue.vector for queue in state.queues)):
            assert vector < self.pci.layout.vectors or vector == NO_VECTOR

    @invariant()
    def the_function_is_still_what_it_was(self) -> None:
        again = PciDriver(self.pci)
        assert again.capabilities == self.driver.capabilities
        kinds = set(StructureType) - {StructureType.PCI_CFG}
        assert all(again.structures[kind] == self.driver.structures[kind] for kind in kinds)
        successor = VirtioPci(self.device, self.pci.layout, state=self.pci.save())
        assert successor.save() == self.pci.save()


TestClients = Clients.TestCase
