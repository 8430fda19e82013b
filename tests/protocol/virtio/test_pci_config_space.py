"""The capability list and PCI's own capabilities, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.pci.config_space import (
    EXPRESS_SIZE,
    MAX_VECTORS,
    Capability,
    CapabilityId,
    Express,
    Header,
    express_capability,
    msix_capability,
    pending_array_size,
    place_capabilities,
)

VENDOR = CapabilityId.VENDOR


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_the_list_is_linked_aligned_and_ends(bodies: list[bytes]) -> None:
    placed = place_capabilities(Capability(VENDOR, body) for body in bodies)
    assert [each.data[2:] for each in placed] == bodies
    expected = 0x40
    for each, following in zip(placed, [*placed[1:], None], strict=True):
        assert each.offset == expected
        assert each.offset % 4 == 0
        assert each.data[1] == (following.offset if following else 0)
        if following:
            assert each.offset + len(each.data) <= following.offset
            expected = following.offset


def test_a_list_fills_the_space_to_its_last_byte_but_no_further() -> None:
    whole = 256 - 0x40 - 2
    assert place_capabilities([Capability(VENDOR, bytes(whole))])[0].data[1] == 0
    with pytest.raises(InternalError, match="do not fit"):
        place_capabilities([Capability(VENDOR, bytes(whole + 1))])


def test_msix_tells_the_last_vector_and_the_places() -> None:
    capability = msix_capability(6, 1, 0x800)
    assert capability.body == bytes.fromhex("0500 01000000 01080000")
    assert msix_capability(MAX_VECTORS, 0, 0x8000).body[:2] == bytes.fromhex("ff07")


def test_pending_bits_come_in_64_bit_words() -> None:
    assert [pending_array_size(vectors) for vectors in (1, 64, 65, 2048)] == [8, 8, 16, 256]


def test_express_offers_a_function_level_reset_and_has_no_link() -> None:
    placed = place_capabilities([express_capability()])[0]
    assert len(placed.data) == EXPRESS_SIZE
    assert placed.data[:8] == bytes.fromhex("1000 0200 00800010")
    assert not any(placed.data[8:])
    assert Express.DEVICE_CONTROL.offset == 8


def test_the_header_is_the_specifications() -> None:
    places = {register.name: (register.offset, register.width) for register in Header}
    assert places["CLASS_CODE"] == (9, 3)
    assert places["TYPE"] == (0x0E, 1)
    assert places["BAR0"] == (0x10, 4)
    assert places["SUBSYSTEM_ID"] == (0x2E, 2)
    assert places["ROM"] == (0x30, 4)
    assert places["INTERRUPT_PIN"] == (0x3D, 1)
    assert Header.COMMAND.writable == 0x547
