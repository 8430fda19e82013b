"""virtio's capabilities and the common configuration structure, byte for byte."""

from __future__ import annotations

from ballast_protocol.virtio.pci.structures import (
    COMMON_BY_PLACE,
    COMMON_SIZE,
    DRIVER_STATUS,
    Common,
    PciCfg,
    StructureType,
    notify_capability,
    pci_cfg_capability,
    structure_capability,
)


def test_a_structure_capability_says_where() -> None:
    capability = structure_capability(StructureType.ISR, 0, 0x1000, 0x20)
    assert capability.id == 9
    assert capability.body == bytes.fromhex("10 03 00 00 0000 00100000 20000000")


def test_the_notify_capability_has_the_multiplier_behind() -> None:
    body = notify_capability(4, 0x3000, 0x1000, 4).body
    assert body == bytes.fromhex("14 02 04 00 0000 00300000 00100000 04000000")


def test_the_pci_cfg_capability_has_room_for_the_data() -> None:
    capability = pci_cfg_capability()
    assert 2 + len(capability.body) == PciCfg.DATA.offset + PciCfg.DATA.width == 20
    assert capability.body[:2] == bytes((20, 5))
    assert not any(capability.body[2:])


def test_the_common_structure_is_the_specifications() -> None:
    assert COMMON_SIZE == 64
    assert [register.offset for register in Common] == [
        *(0, 4, 8, 12, 16, 18, 20, 21, 22, 24, 26, 28, 30),
        *(32, 36, 40, 44, 48, 52, 56, 58, 60, 62),
    ]
    assert sum(register.width for register in Common) == COMMON_SIZE
    assert COMMON_BY_PLACE[20, 1] is Common.DEVICE_STATUS
    assert (20, 2) not in COMMON_BY_PLACE


def test_only_the_device_asks_for_a_reset() -> None:
    assert int(DRIVER_STATUS) == 0x8F
