"""Negotiation and queue setup through the common configuration structure."""

from __future__ import annotations

import pytest

from ballast.virtio_pci.effects import (
    DeviceReset,
    DriverReady,
    Effects,
    QueueEnabled,
    QueueReset,
    StatusChanged,
)
from ballast.virtio_pci.layout import Variant
from ballast_protocol.virtio.features import VirtioFeature
from ballast_protocol.virtio.pci.structures import (
    NO_VECTOR,
    Common,
    DeviceStatus,
    StructureType,
)
from support.pci_driver import (
    FEATURES,
    QUEUE_SIZE,
    QUEUES,
    Device,
    PciDriver,
    function,
    ring_address,
)

ADDRESS_HALVES = [register for register in Common if register.name.endswith(("_LOW", "_HIGH"))]


@pytest.fixture
def driver() -> PciDriver:
    return PciDriver(function())


def ignored(driver: PciDriver, register: Common, value: int) -> bool:
    """Write; return whether it was counted as ignored, in which case nothing may follow."""
    before = driver.pci.ignored_writes
    effects = driver.put(register, value)
    assert not effects or driver.pci.ignored_writes == before
    return driver.pci.ignored_writes == before + 1


# Features


def test_feature_windows(driver: PciDriver) -> None:
    assert driver.offered() == FEATURES
    for beyond in (2, 0xFFFF_FFFF):
        driver.put(Common.DEVICE_FEATURE_SELECT, beyond)
        assert driver.get(Common.DEVICE_FEATURE_SELECT) == beyond
        assert driver.get(Common.DEVICE_FEATURE) == 0


def test_what_the_driver_accepts_can_be_read_back(driver: PciDriver) -> None:
    driver.accept(0x1_0000_0005)
    assert driver.get(Common.DRIVER_FEATURE) == 1
    driver.put(Common.DRIVER_FEATURE_SELECT, 0)
    assert driver.get(Common.DRIVER_FEATURE) == 5
    driver.put(Common.DRIVER_FEATURE, 4)
    assert driver.get(Common.DRIVER_FEATURE) == 4
    driver.put(Common.DRIVER_FEATURE_SELECT, 2)
    assert driver.get(Common.DRIVER_FEATURE) == 0
    assert ignored(driver, Common.DRIVER_FEATURE, 1)


def test_features_that_were_offered_are_agreed_to(driver: PciDriver) -> None:
    assert driver.negotiate(int(VirtioFeature.VERSION_1) | 1)
    assert driver.pci.features == int(VirtioFeature.VERSION_1) | 1


@pytest.mark.parametrize("features", [FEATURES | 2, FEATURES | 1 << 63, 0b101, 0])
def test_features_not_offered_or_without_version_1_are_refused(
    driver: PciDriver, features: int
) -> None:
    assert not driver.negotiate(features)
    assert driver.get(Common.DEVICE_STATUS) == 3
    assert driver.pci.features == 0
    driver.accept(FEATURES)
    driver.add_status(DeviceStatus.FEATURES_OK)
    assert driver.pci.features == FEATURES


def test_agreed_features_cannot_be_changed(driver: PciDriver) -> None:
    assert driver.negotiate()
    driver.put(Common.DRIVER_FEATURE_SELECT, 0)
    assert ignored(driver, Common.DRIVER_FEATURE, 0)
    assert driver.pci.features == FEATURES


def test_what_was_agreed_stays_agreed_when_the_device_offers_less() -> None:
    device = Device()
    driver = PciDriver(function(device=device))
    driver.negotiate()
    device.features &= ~1
    driver.add_status(DeviceStatus.DRIVER_OK)
    assert driver.pci.is_running
    assert driver.pci.features == FEATURES


# Status


def test_status_changes_are_told_once(driver: PciDriver) -> None:
    assert driver.put(Common.DEVICE_STATUS, 1) == (StatusChanged(1),)
    assert driver.put(Common.DEVICE_STATUS, 1) == ()
    assert driver.put(Common.DEVICE_STATUS, 3) == (StatusChanged(3),)
    driver.accept(FEATURES)
    assert driver.put(Common.DEVICE_STATUS, 11) == (StatusChanged(11),)
    assert driver.put(Common.DEVICE_STATUS, 15) == (StatusChanged(15), DriverReady(FEATURES))
    assert driver.put(Common.DEVICE_STATUS, 15) == ()


def test_bits_cannot_be_cleared_one_by_one(driver: PciDriver) -> None:
    driver.start()
    assert driver.put(Common.DEVICE_STATUS, 0x80) == (StatusChanged(0x8F),)
    assert driver.get(Common.DEVICE_STATUS) == 0x8F


def test_the_driver_cannot_set_the_devices_bits(driver: PciDriver) -> None:
    assert driver.put(Common.DEVICE_STATUS, 0x70) == ()
    assert driver.get(Common.DEVICE_STATUS) == 0


def test_driver_ok_needs_features_ok(driver: PciDriver) -> None:
    assert driver.put(Common.DEVICE_STATUS, 7) == (StatusChanged(3),)
    assert driver.put(Common.DEVICE_STATUS, 15) == ()
    assert driver.get(Common.DEVICE_STATUS) == 3


def test_zero_resets_each_time(driver: PciDriver) -> None:
    fresh = function().save().common
    driver.start(with_msix=True)
    driver.pci.config_changed()
    assert driver.pci.save().common != fresh
    for _ in range(2):
        assert driver.put(Common.DEVICE_STATUS, 0) == (DeviceReset(),)
        assert driver.pci.save().common == fresh


# Queues


def test_queues_begin_with_the_largest_size_and_nothing_else(driver: PciDriver) -> None:
    assert driver.get(Common.NUM_QUEUES) == QUEUES
    for index in range(QUEUES):
        driver.put(Common.QUEUE_SELECT, index)
        assert driver.get(Common.QUEUE_SIZE) == QUEUE_SIZE
        assert driver.get(Common.QUEUE_MSIX_VECTOR) == NO_VECTOR
        assert driver.get(Common.QUEUE_NOTIFY_OFF) == index
        for register in (Common.QUEUE_ENABLE, Common.QUEUE_RESET, *ADDRESS_HALVES):
            assert driver.get(register) == 0


@pytest.mark.parametrize("index", [QUEUES, 0xFFFF])
def test_a_queue_that_does_not_exist(driver: PciDriver, index: int) -> None:
    driver.negotiate()
    driver.put(Common.QUEUE_SELECT, index)
    assert driver.get(Common.QUEUE_SELECT) == index
    assert driver.get(Common.QUEUE_MSIX_VECTOR) == NO_VECTOR
    for register in (Common.QUEUE_SIZE, Common.QUEUE_ENABLE, Common.QUEUE_NOTIFY_OFF):
        assert driver.get(register) == 0
    writable = (Common.QUEUE_SIZE, Common.QUEUE_MSIX_VECTOR, Common.QUEUE_ENABLE)
    for register in (*writable, Common.QUEUE_RESET, *ADDRESS_HALVES):
        assert ignored(driver, register, 1)


@pytest.mark.parametrize("size", [0, 3, 127, 2 * QUEUE_SIZE, 0x8000, 0xFFFF])
def test_sizes_that_cannot_be_are_refused(driver: PciDriver, size: int) -> None:
    assert ignored(driver, Common.QUEUE_SIZE, size)
    assert driver.get(Common.QUEUE_SIZE) == QUEUE_SIZE


@pytest.mark.parametrize("size", [1, 2, 64, QUEUE_SIZE])
def test_smaller_sizes_are_taken(driver: PciDriver, size: int) -> None:
    assert not ignored(driver, Common.QUEUE_SIZE, size)
    assert driver.get(Common.QUEUE_SIZE) == size


def test_addresses_are_two_halves_each(driver: PciDriver) -> None:
    for number, register in enumerate(ADDRESS_HALVES):
        driver.put(register, 0x1111_1111 * (number + 1))
        driver.put(register, 0x0101_0101 * (number + 1))
    for number, register in enumerate(ADDRESS_HALVES):
        assert driver.get(register) == 0x0101_0101 * (number + 1)


def test_an_address_in_one_write_of_eight_bytes(driver: PciDriver) -> None:
    offset = Common.QUEUE_DRIVER_LOW.offset
    driver.write(StructureType.COMMON, offset, 8, 0x1122_3344_5566_7788)
    assert driver.get(Common.QUEUE_DRIVER_LOW) == 0x5566_7788
    assert driver.get(Common.QUEUE_DRIVER_HIGH) == 0x1122_3344
    assert driver.read(StructureType.COMMON, offset, 8) == 0x1122_3344_5566_7788


def test_a_queue_is_enabled_once_and_only_after_features_ok(driver: PciDriver) -> None:
    assert ignored(driver, Common.QUEUE_ENABLE, 1)
    driver.negotiate()
    driver.set_up_queue(1)
    assert driver.pci.queue_state(1) is None
    assert driver.enable_queue(1) == (QueueEnabled(1),)
    assert driver.get(Common.QUEUE_ENABLE) == 1
    for value in (0, 1, 2):
        assert ignored(driver, Common.QUEUE_ENABLE, value)
    assert driver.get(Common.QUEUE_ENABLE) == 1


@pytest.mark.parametrize("value", [0, 2, 0xFFFF])
def test_only_one_enables(driver: PciDriver, value: int) -> None:
    driver.negotiate()
    assert ignored(driver, Common.QUEUE_ENABLE, value)
    assert driver.get(Common.QUEUE_ENABLE) == 0


def test_an_enabled_queue_stays_as_it_is(driver: PciDriver) -> None:
    driver.negotiate()
    driver.set_up_queue(0)
    driver.enable_queue(0)
    before = driver.pci.queue_state(0)
    for register in (Common.QUEUE_SIZE, *ADDRESS_HALVES):
        assert ignored(driver, register, 2)
    assert driver.pci.queue_state(0) == before


def test_what_the_transport_gets_of_a_queue(driver: PciDriver) -> None:
    driver.negotiate()
    driver.set_up_queue(2)
    driver.enable_queue(2)
    state = driver.pci.queue_state(2)
    assert state is not None
    assert state.size == QUEUE_SIZE
    assert state.addresses == tuple(ring_address(2, number) for number in range(3))
    assert (state.event_idx, state.indirect) == (True, False)
    assert driver.pci.queue_state(0) is None
    assert driver.pci.queue_state(QUEUES) is None


def test_one_queue_can_be_reset_and_enabled_again(driver: PciDriver) -> None:
    driver.start(with_msix=True)
    driver.put(Common.QUEUE_SELECT, 1)
    assert driver.put(Common.QUEUE_RESET, 1) == (QueueReset(1),)
    assert driver.get(Common.QUEUE_RESET) == driver.get(Common.QUEUE_ENABLE) == 0
    assert driver.get(Common.QUEUE_MSIX_VECTOR) == NO_VECTOR
    assert driver.get(Common.QUEUE_DESC_LOW) == 0
    assert driver.pci.queue_state(1) is None
    assert driver.pci.queue_state(2) is not None
    driver.set_up_queue(1)
    assert driver.enable_queue(1) == (QueueEnabled(1),)


def test_a_queue_is_not_reset_unless_it_is_enabled(driver: PciDriver) -> None:
    driver.negotiate()
    assert ignored(driver, Common.QUEUE_RESET, 1)
    driver.set_up_queue(0)
    driver.enable_queue(0)
    assert ignored(driver, Common.QUEUE_RESET, 0)
    assert driver.pci.queue_state(0) is not None


def test_a_queue_is_not_reset_unless_the_feature_was_negotiated(driver: PciDriver) -> None:
    driver.negotiate(FEATURES & ~VirtioFeature.RING_RESET)
    driver.set_up_queue(0)
    driver.enable_queue(0)
    assert ignored(driver, Common.QUEUE_RESET, 1)
    assert driver.pci.queue_state(0) is not None


# Vectors


@pytest.mark.parametrize("register", [Common.CONFIG_MSIX_VECTOR, Common.QUEUE_MSIX_VECTOR])
def test_vectors_are_taken_up_to_the_last_one(driver: PciDriver, register: Common) -> None:
    for vector, expected in ((0, 0), (QUEUES, QUEUES), (QUEUES + 1, NO_VECTOR), (1, 1)):
        driver.put(register, vector)
        assert driver.get(register) == expected
    driver.put(register, NO_VECTOR)
    assert driver.get(register) == NO_VECTOR


@pytest.mark.parametrize("register", [Common.CONFIG_MSIX_VECTOR, Common.QUEUE_MSIX_VECTOR])
def test_without_msix_there_is_no_vector(register: Common) -> None:
    driver = PciDriver(function(Variant.INTX))
    driver.put(register, 0)
    assert driver.get(register) == NO_VECTOR


def test_the_vector_of_an_enabled_queue_can_be_taken_away(driver: PciDriver) -> None:
    driver.start(with_msix=True)
    driver.put(Common.QUEUE_SELECT, 0)
    driver.put(Common.QUEUE_MSIX_VECTOR, NO_VECTOR)
    assert driver.get(Common.QUEUE_MSIX_VECTOR) == NO_VECTOR


# Accesses


@pytest.mark.parametrize(
    "register",
    [
        Common.DEVICE_FEATURE,
        Common.NUM_QUEUES,
        Common.CONFIG_GENERATION,
        Common.QUEUE_NOTIFY_OFF,
        Common.QUEUE_NOTIF_CONFIG_DATA,
        Common.ADMIN_QUEUE_INDEX,
        Common.ADMIN_QUEUE_NUM,
    ],
)
def test_read_only_registers(driver: PciDriver, register: Common) -> None:
    before = driver.get(register)
    assert ignored(driver, register, 1)
    assert driver.get(register) == before


def test_fields_of_features_that_are_never_offered_are_zero(driver: PciDriver) -> None:
    driver.start()
    assert driver.read(StructureType.COMMON, Common.ADMIN_QUEUE_INDEX.offset, 4) == 0
    assert driver.get(Common.QUEUE_NOTIF_CONFIG_DATA) == 0


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0x14, 2), (0x14, 4), (0x13, 2), (0x15, 4), (0x18, 1), (0x18, 4), (0x20, 2), (0x24, 8)],
)
def test_writes_of_another_width_or_place_are_ignored(
    driver: PciDriver, offset: int, size: int
) -> None:
    before = driver.pci.save()
    effects: Effects = driver.write(StructureType.COMMON, offset, size, 1)
    assert effects == ()
    assert driver.pci.ignored_writes == 1
    assert driver.pci.save() == before


def test_reads_of_another_width_see_the_same_bytes(driver: PciDriver) -> None:
    driver.start()
    status = int(driver.pci.status)
    assert driver.read(StructureType.COMMON, 0x12, 4) == QUEUES | status << 16
    assert driver.read(StructureType.COMMON, 0x11, 4) >> 24 == status
    whole = driver.pci.read(0, 0, 64)
    assert all(whole[start : start + 3] == driver.pci.read(0, start, 3) for start in range(60))
    assert driver.pci.read(0, 60, 100) == whole[60:] + bytes(96)
