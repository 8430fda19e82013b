"""The whole function: probe, device configuration, window, what is not there, hand-over."""

from __future__ import annotations

import pytest

from ballast.virtio_pci.device import MAX_READ_BYTES, VirtioPci
from ballast.virtio_pci.effects import (
    DeviceReset,
    DriverReady,
    QueueNotified,
    StatusChanged,
)
from ballast.virtio_pci.layout import CONFIG_REGION, Variant, make_layout
from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.pci.config_space import Header
from ballast_protocol.virtio.pci.structures import (
    NO_VECTOR,
    Common,
    Isr,
    StructureType,
)
from support.pci_driver import FEATURES, QUEUES, Device, PciDriver, function

CONFIG = b"configuration!!!"
COMMAND = Header.COMMAND.offset
DEVICE, NOTIFY, ISR = StructureType.DEVICE, StructureType.NOTIFY, StructureType.ISR


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


# Linux's way from probe to a running device


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("flr", [True, False])
def test_probe_as_linux_does(variant: Variant, flr: bool) -> None:
    pci = function(variant, flr=flr)
    driver = PciDriver(pci)
    assert driver.config(0, 4) == 0x1045_1AF4
    assert set(driver.structures) == set(StructureType)
    for kind in (StructureType.COMMON, ISR, NOTIFY, DEVICE):
        place = driver.structures[kind]
        assert 0 < place.length <= pci.layout.bars[place.bar] - place.offset
        assert place.offset % 4 == 0
    assert (QUEUES - 1) * driver.multiplier + 2 <= driver.structures[NOTIFY].length
    assert (0x11 in driver.capabilities) is (variant is not Variant.INTX)
    assert (0x10 in driver.capabilities) is flr
    ready = driver.start(with_msix=variant is not Variant.INTX)
    assert ready == (StatusChanged(15), DriverReady(FEATURES))
    assert pci.is_running
    assert pci.features == FEATURES
    assert pci.ignored_writes == 0
    assert driver.notify(2) == (QueueNotified(2),)


def test_unbind_and_bind_again(msix: PciDriver) -> None:
    assert msix.put(Common.DEVICE_STATUS, 0) == (DeviceReset(),)
    assert not msix.pci.is_running
    for index in range(QUEUES):
        msix.put(Common.QUEUE_SELECT, index)
        msix.put(Common.QUEUE_MSIX_VECTOR, NO_VECTOR)
    msix.set_msix(0)
    assert msix.start(with_msix=True)[-1] == DriverReady(FEATURES)
    assert msix.pci.ignored_writes == 0


# The device-specific configuration


def test_the_configuration_is_read_at_any_width_and_ends_with_zeros(driver: PciDriver) -> None:
    place = driver.structures[DEVICE]
    for offset, size in ((0, 4), (3, 1), (2, 2), (0, 16), (1, 3), (12, 8), (16, 4), (4090, 20)):
        expected = CONFIG[offset : offset + size].ljust(size, b"\0")
        assert driver.pci.read(place.bar, place.offset + offset, size) == expected


def test_the_configuration_is_written_register_by_register() -> None:
    device = Device()
    driver = PciDriver(function(device=device))
    driver.write(DEVICE, 4, 4, 0x44332211)
    driver.write(DEVICE, 1, 1, 0x55)
    driver.write(DEVICE, 6, 2, 0x7766)
    driver.write(DEVICE, 8, 8, 0x0807060504030201)
    assert device.written == [
        (4, bytes.fromhex("11223344")),
        (1, b"\x55"),
        (6, bytes.fromhex("6677")),
        (8, bytes.fromhex("01020304")),
        (12, bytes.fromhex("05060708")),
    ]
    assert driver.pci.ignored_writes == 0


@pytest.mark.parametrize(("offset", "size"), [(1, 2), (2, 4), (4, 8), (0, 3), (0, 16), (16, 1)])
def test_other_writes_of_the_configuration_are_ignored(offset: int, size: int) -> None:
    device = Device()
    driver = PciDriver(function(device=device))
    assert driver.write(DEVICE, offset, size, 1) == ()
    assert (device.written, driver.pci.ignored_writes) == ([], 1)


def test_a_write_over_the_end_of_the_configuration_is_ignored() -> None:
    device = Device(b"abc")
    driver = PciDriver(function(device=device))
    driver.write(DEVICE, 0, 4, 1)
    assert (device.written, driver.pci.ignored_writes) == ([], 1)


def test_a_device_without_configuration() -> None:
    driver = PciDriver(function(device=Device(b"")))
    assert DEVICE not in driver.structures
    assert driver.pci.read(0, 0x2000, 4) == bytes(4)
    assert driver.pci.write(0, 0x2000, b"a") == ()
    assert driver.pci.ignored_writes == 1


def test_the_generation_grows_when_a_changed_configuration_is_read(driver: PciDriver) -> None:
    before = driver.get(Common.CONFIG_GENERATION)
    for _ in range(256):
        driver.pci.config_changed()
    assert driver.get(Common.CONFIG_GENERATION) == before
    driver.read(DEVICE, 0, 4)
    assert driver.get(Common.CONFIG_GENERATION) == before + 1
    driver.read(DEVICE, 0, 4)
    assert driver.get(Common.CONFIG_GENERATION) == before + 1


def test_the_generation_wraps(driver: PciDriver) -> None:
    for _ in range(257):
        driver.pci.config_changed()
        driver.read(DEVICE, 0, 4)
    assert driver.get(Common.CONFIG_GENERATION) == 1


def test_with_a_mapped_configuration_every_change_counts() -> None:
    driver = PciDriver(function(Variant.MSIX_MAPPED))
    for _ in range(257):
        driver.pci.config_changed()
    assert driver.get(Common.CONFIG_GENERATION) == 1
    driver.read(DEVICE, 0, 4)
    assert driver.get(Common.CONFIG_GENERATION) == 1


# The window of PCI_CFG


def test_a_driver_can_do_it_all_through_the_window() -> None:
    driver = PciDriver(function())
    place = driver.structures[StructureType.COMMON]
    data = driver.aim(place.bar, place.offset + Common.DEVICE_STATUS.offset, 1)
    assert driver.set_config(data, 1, 3) == (StatusChanged(3),)
    assert driver.get(Common.DEVICE_STATUS) == 3
    assert driver.config(data, 4) & 0xFF == 3
    place = driver.structures[DEVICE]
    data = driver.aim(place.bar, place.offset + 4, 4)
    assert driver.pci.read(CONFIG_REGION, data, 4) == CONFIG[4:8]
    driver.aim(place.bar, place.offset + 8, 2)
    assert driver.pci.read(CONFIG_REGION, data, 2) == CONFIG[8:10]


def test_notification_and_isr_through_the_window(intx: PciDriver) -> None:
    place = intx.structures[NOTIFY]
    data = intx.aim(place.bar, place.offset + 4, 2)
    assert intx.set_config(data, 2, 1) == (QueueNotified(1),)
    intx.pci.config_changed()
    place = intx.structures[ISR]
    data = intx.aim(place.bar, place.offset, 1)
    intx.pci.read(CONFIG_REGION, 0, 256)
    assert intx.pci.is_intx_asserted
    assert intx.config(data, 1) == Isr.CONFIG
    assert not intx.pci.is_intx_asserted


@pytest.mark.parametrize(("bar", "offset", "length"), [(7, 0, 4), (0, 2, 4), (0, 0, 64), (0, 0, 0)])
def test_an_illegal_window_does_nothing(
    driver: PciDriver, bar: int, offset: int, length: int
) -> None:
    data = driver.aim(bar, offset, length)
    assert driver.set_config(data, 4, 1) == ()
    assert driver.pci.ignored_writes == 1
    assert driver.config(data, 4) == 1


# What is not there


@pytest.mark.parametrize(
    ("region", "offset"),
    [
        (0, 0x4000),
        (0, 1 << 63),
        (0, 0x800),
        (1, 0),
        (2, 0),
        (5, 0),
        (6, 0),
        (8, 0),
        (9, 0),
        (-1, 0),
    ],
)
def test_where_nothing_is_reads_give_zeros_and_writes_are_ignored(
    driver: PciDriver, region: int, offset: int
) -> None:
    before = driver.pci.save()
    assert driver.pci.read(region, offset, 8) == bytes(8)
    assert driver.pci.write(region, offset, b"\xff" * 4) == ()
    assert driver.pci.ignored_writes == 1
    assert driver.pci.save() == before


def test_beyond_the_configuration_space(driver: PciDriver) -> None:
    end = driver.pci.layout.config_space_size
    assert driver.pci.read(CONFIG_REGION, end - 2, 4) == bytes(4)
    assert driver.pci.write(CONFIG_REGION, end, b"a") == ()
    assert driver.pci.ignored_writes == 1


def test_a_read_is_bounded(driver: PciDriver) -> None:
    assert driver.pci.read(0, 0, 1 << 60) == driver.pci.read(0, 0, 64).ljust(MAX_READ_BYTES, b"\0")
    assert driver.pci.read(0, 0, -1) == b""


def test_an_empty_write_is_none(driver: PciDriver) -> None:
    assert driver.pci.write(0, 0, b"") == ()
    assert driver.pci.write(CONFIG_REGION, COMMAND, b"") == ()


# Handing on


@pytest.mark.parametrize("variant", Variant)
def test_a_successor_goes_on_where_it_was(variant: Variant) -> None:
    device = Device()
    before = function(variant, device)
    driver = PciDriver(before)
    driver.start(with_msix=variant is not Variant.INTX)
    driver.set_config(Header.BAR0.offset, 4, 0xFEB0_0000)
    before.config_changed()
    saved = before.save()
    after = VirtioPci(device, before.layout, state=saved)
    before.needs_reset()
    assert after.save() == saved != before.save()
    assert after.is_running
    assert after.queue_state(1) == VirtioPci(device, after.layout, state=saved).queue_state(1)
    successor = PciDriver(after)
    assert successor.notify(0) == (QueueNotified(0),)
    assert successor.isr() == Isr.CONFIG
    assert saved.common.isr == Isr.CONFIG


def test_state_of_another_device_is_refused() -> None:
    saved = function().save()
    saved.common.queues.pop()
    device = Device()
    layout = make_layout(Variant.MSIX, queue_count=QUEUES, config_size=16, has_function_reset=True)
    with pytest.raises(InternalError, match="number of queues"):
        VirtioPci(device, layout, state=saved)


@pytest.mark.parametrize(
    "features",
    [0, FEATURES & ~(1 << 32), FEATURES | 1 << 37, FEATURES | 1 << 39, FEATURES | 1 << 41],
)
def test_features_that_pci_cannot_carry_are_our_bug(features: int) -> None:
    device = Device()
    device.features = features
    with pytest.raises(InternalError, match="cannot be offered"):
        function(device=device)


@pytest.mark.parametrize("size", [0, -1, 3, 100])
def test_queue_sizes_that_cannot_be_are_our_bug(size: int) -> None:
    with pytest.raises(InternalError, match="descriptors"):
        function(device=Device(queue_max_size=size))
