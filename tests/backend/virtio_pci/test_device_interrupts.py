"""The function at work: notifications, interrupts by MSI-X and INTx, resets."""

from __future__ import annotations

import pytest

from ballast.virtio_pci.effects import (
    BusMasterChanged,
    DeviceReset,
    Intx,
    IntxAsserted,
    QueueEnabled,
    QueueNotified,
    StatusChanged,
    Vector,
)
from ballast.virtio_pci.layout import CONFIG_REGION, Variant
from ballast_protocol.virtio.pci.config_space import Command, Header, MsixControl, PciStatus
from ballast_protocol.virtio.pci.structures import (
    NO_VECTOR,
    Common,
    DeviceStatus,
    Isr,
    StructureType,
)
from support.pci_driver import QUEUES, PciDriver, function

MASTER = int(Command.MEMORY | Command.BUS_MASTER)
NOTIFY, ISR = StructureType.NOTIFY, StructureType.ISR


@pytest.fixture(params=[Variant.MSIX, Variant.INTX])
def driver(request: pytest.FixtureRequest) -> PciDriver:
    return PciDriver(function(request.param))


@pytest.fixture
def msix() -> PciDriver:
    driver = PciDriver(function())
    driver.start(with_msix=True)
    return driver


@pytest.fixture
def intx() -> PciDriver:
    driver = PciDriver(function(Variant.INTX))
    driver.start()
    return driver


def interrupt_status(driver: PciDriver) -> bool:
    return bool(driver.config(Header.STATUS.offset, 2) & PciStatus.INTERRUPT)


# Notifications


def test_notifications_are_two_or_four_bytes_at_the_queues_address(msix: PciDriver) -> None:
    assert msix.write(NOTIFY, 4, 2, 0xFFFF) == (QueueNotified(1),)
    assert msix.write(NOTIFY, 8, 4, 0) == (QueueNotified(2),)
    assert msix.write(NOTIFY, 0, 8, 0) == (QueueNotified(0), QueueNotified(1))
    assert msix.pci.ignored_writes == 0
    for offset, size in ((0, 1), (2, 2), (1, 2), (4 * QUEUES, 2), (0xFFC, 4)):
        assert msix.write(NOTIFY, offset, size, 0) == ()
    assert msix.pci.ignored_writes == 5
    assert msix.read(NOTIFY, 0, 4) == 0


def test_before_the_device_runs_nobody_is_notified(driver: PciDriver) -> None:
    driver.negotiate()
    driver.set_up_queue(0)
    driver.enable_queue(0)
    assert driver.notify(0) == ()
    driver.add_status(DeviceStatus.DRIVER_OK)
    assert driver.notify(0) == (QueueNotified(0),)
    assert driver.notify(1) == ()
    assert driver.pci.ignored_writes == 0
    driver.set_up_queue(1)
    assert driver.enable_queue(1) == (QueueEnabled(1),)
    assert driver.notify(1) == (QueueNotified(1),)


def test_without_bus_mastering_the_device_does_nothing(msix: PciDriver) -> None:
    assert msix.set_command(Command.MEMORY) == (BusMasterChanged(False),)
    assert not msix.pci.is_running
    assert msix.notify(0) == ()
    assert msix.pci.interrupt_for_queue(0) is None
    assert msix.pci.config_changed() is None
    assert msix.set_command(Command.MEMORY) == ()
    assert msix.set_command(MASTER) == (BusMasterChanged(True),)
    assert msix.pci.interrupt_for_queue(0) == Vector(1)


# Interrupts


def test_msix_vectors(msix: PciDriver) -> None:
    assert msix.pci.interrupt_for_queue(0) == Vector(1)
    assert msix.pci.interrupt_for_queue(2) == Vector(3)
    assert msix.pci.interrupt_for_queue(QUEUES) is None
    assert msix.isr() == 0
    assert msix.pci.config_changed() == Vector(0)
    assert not interrupt_status(msix)
    assert msix.isr() == Isr.CONFIG


def test_an_event_without_a_vector_is_silent(msix: PciDriver) -> None:
    msix.put(Common.QUEUE_SELECT, 0)
    msix.put(Common.QUEUE_MSIX_VECTOR, NO_VECTOR)
    msix.put(Common.CONFIG_MSIX_VECTOR, NO_VECTOR)
    assert msix.pci.interrupt_for_queue(0) is None
    assert msix.pci.config_changed() is None


def test_intx_lasts_until_the_isr_is_read(intx: PciDriver) -> None:
    assert not intx.pci.is_intx_asserted
    assert intx.pci.interrupt_for_queue(1) == Intx()
    assert intx.pci.config_changed() == Intx()
    assert intx.pci.is_intx_asserted
    assert interrupt_status(intx)
    assert intx.isr() == Isr.QUEUE | Isr.CONFIG
    assert not intx.pci.is_intx_asserted
    assert not interrupt_status(intx)
    assert intx.isr() == 0


def test_a_function_with_msix_uses_intx_while_it_is_off() -> None:
    driver = PciDriver(function())
    driver.start()
    assert driver.pci.interrupt_for_queue(0) == Intx()


def test_disabled_intx_is_held_back_but_shown(intx: PciDriver) -> None:
    intx.set_command(MASTER | Command.INTX_DISABLE)
    assert intx.pci.interrupt_for_queue(0) is None
    assert not intx.pci.is_intx_asserted
    assert interrupt_status(intx)
    assert intx.set_command(MASTER) == (IntxAsserted(),)
    assert intx.pci.is_intx_asserted
    assert intx.set_command(MASTER) == ()
    intx.isr()
    intx.set_command(MASTER | Command.INTX_DISABLE)
    assert intx.set_command(MASTER) == ()


def test_enabling_msix_takes_intx_back() -> None:
    driver = PciDriver(function())
    driver.start()
    driver.pci.interrupt_for_queue(0)
    driver.set_msix(MsixControl.ENABLE)
    assert not driver.pci.is_intx_asserted
    assert not interrupt_status(driver)
    assert driver.set_msix(0) == (IntxAsserted(),)


def test_only_the_first_byte_of_the_isr_clears_it(intx: PciDriver) -> None:
    intx.pci.config_changed()
    assert intx.read(ISR, 1, 1) == intx.read(ISR, 4, 4) == 0
    assert intx.pci.read(0, intx.structures[ISR].offset, 0) == b""
    assert intx.write(ISR, 0, 1, 0) == ()
    assert intx.pci.ignored_writes == 1
    assert intx.pci.is_intx_asserted
    assert intx.read(ISR, 0, 4) == Isr.CONFIG
    assert not intx.pci.is_intx_asserted


def test_the_interrupt_bit_is_at_its_place_in_any_read(intx: PciDriver) -> None:
    quiet = intx.pci.read(CONFIG_REGION, 0, 256)
    intx.pci.config_changed()
    loud = bytearray(quiet)
    loud[6] |= PciStatus.INTERRUPT
    for offset, size in ((0, 256), (4, 4), (6, 1), (5, 2), (7, 1), (2, 4), (8, 4)):
        expected = loud[offset : offset + size]
        assert intx.pci.read(CONFIG_REGION, offset, size) == expected


def test_before_driver_ok_there_are_no_interrupts(driver: PciDriver) -> None:
    driver.negotiate()
    driver.set_up_queue(0)
    driver.enable_queue(0)
    assert driver.pci.interrupt_for_queue(0) is None
    assert driver.pci.config_changed() is None
    assert driver.pci.needs_reset() is None
    assert driver.isr() == 0


# Resets


def test_a_device_that_cannot_go_on_says_so_and_stops(msix: PciDriver) -> None:
    assert msix.pci.needs_reset() == Vector(0)
    assert msix.get(Common.DEVICE_STATUS) == 0x4F
    assert not msix.pci.is_running
    assert msix.notify(0) == ()
    assert msix.pci.interrupt_for_queue(0) is None
    assert msix.put(Common.DEVICE_STATUS, 0x8F) == (StatusChanged(0xCF),)
    msix.put(Common.DEVICE_STATUS, 0)
    assert msix.get(Common.DEVICE_STATUS) == 0
    msix.set_msix(0)
    msix.start(with_msix=True)
    assert msix.pci.is_running


def test_a_device_reset_leaves_the_function_alone(msix: PciDriver) -> None:
    before = msix.pci.read(CONFIG_REGION, 0, 256)
    msix.put(Common.DEVICE_STATUS, 0)
    assert msix.pci.read(CONFIG_REGION, 0, 256) == before


@pytest.mark.parametrize("by_guest", [True, False])
def test_a_function_reset_forgets_everything(msix: PciDriver, by_guest: bool) -> None:
    msix.set_config(Header.BAR0.offset, 4, 0xFEB0_0000)
    effects = msix.reset_function() if by_guest else msix.pci.reset()
    assert effects == (DeviceReset(),)
    assert msix.pci.save() == function().save()


def test_a_reset_takes_intx_back(intx: PciDriver) -> None:
    intx.pci.config_changed()
    intx.put(Common.DEVICE_STATUS, 0)
    assert not intx.pci.is_intx_asserted
