"""The configuration space: what it says, what can be written, and the window into the BARs."""

from __future__ import annotations

import pytest

from ballast.virtio_pci.config_space import BarAccess, ConfigSpace
from ballast.virtio_pci.layout import Variant, make_layout
from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.pci.config_space import Command

WINDOW = 0x84


@pytest.fixture
def space() -> ConfigSpace:
    layout = make_layout(Variant.MSIX, queue_count=5, config_size=16)
    return ConfigSpace(5, 0x00FF00, layout)


def test_the_whole_space_of_a_balloon(space: ConfigSpace) -> None:
    expected = bytearray(256)
    expected[:0x40] = bytes.fromhex(
        "f41a 4510 0000 1000 01 00ff00 00 00 00 00"
        + "00000000" * 7
        + "f41a 0011 00000000 40 000000 00000000 00 01 0000"
    )
    expected[0x40:0xA4] = bytes.fromhex(
        "09 50 10 01 00 00 0000 00000000 00100000"
        "09 60 10 03 00 00 0000 00100000 00100000"
        "09 70 10 04 00 00 0000 00200000 00100000"
        "09 84 14 02 00 00 0000 00300000 00100000 04000000"
        "09 98 14 05 00 00 0000 00000000 00000000 00000000"
        "11 00 0500 01000000 01080000"
    )
    assert space.read(0, 4096) == expected


def test_intx_has_neither_msix_nor_its_bar() -> None:
    layout = make_layout(Variant.INTX, queue_count=5, config_size=16)
    space = ConfigSpace(5, 0x00FF00, layout)
    assert space.read(WINDOW, 2) == bytes((9, 0))
    assert not any(space.read(0x98, 256))
    space.write(0x14, b"\xff" * 4)
    assert space.read(0x14, 4) == bytes(4)
    assert not space.is_msix_enabled


def test_only_writable_bits_take_a_write(space: ConfigSpace) -> None:
    before = space.read(0, 256)
    assert space.write(0, b"\xff" * 256)
    changed = {
        offset: new
        for offset, (old, new) in enumerate(zip(before, space.read(0, 256), strict=True))
        if old != new
    }
    window = {WINDOW + 4, *range(WINDOW + 8, WINDOW + 20)}
    assert changed == {
        **{0x04: 0x47, 0x05: 0x05, 0x0C: 0xFF, 0x3C: 0xFF, 0x9B: 0xC0},
        **{0x11: 0xC0, 0x12: 0xFF, 0x13: 0xFF, 0x15: 0xF0, 0x16: 0xFF, 0x17: 0xFF},
        **dict.fromkeys(window, 0xFF),
    }


def test_bars_can_be_sized_and_placed(space: ConfigSpace) -> None:
    for bar, size in enumerate((0x4000, 0x1000, 0, 0, 0, 0)):
        space.write(0x10 + 4 * bar, b"\xff" * 4)
        value = int.from_bytes(space.read(0x10 + 4 * bar, 4), "little")
        assert value == (-size & 0xFFFF_FFFF if size else 0)
    space.write(0x10, bytes.fromhex("00c0ebfe"))
    space.write(0x13, b"\xfd")
    assert space.read(0x10, 4) == bytes.fromhex("00c0ebfd")


def test_there_is_no_rom(space: ConfigSpace) -> None:
    space.write(0x30, (0xFFFF_F800).to_bytes(4, "little"))
    assert space.read(0x30, 4) == bytes(4)


def test_beyond_the_space_nothing_is_written(space: ConfigSpace) -> None:
    for offset, data in ((256, b"a"), (254, b"abc"), (-1, b"a"), (1 << 63, b"a")):
        assert not space.write(offset, data)
        assert len(space.read(offset, 4)) <= 2
    assert space.read(-4, 2) == b""


def test_command_and_msix_are_read_from_the_bytes(space: ConfigSpace) -> None:
    assert (space.command, space.is_msix_enabled) == (0, False)
    space.write(0x04, bytes.fromhex("0604"))
    space.write(0x9A, bytes.fromhex("0080"))
    assert space.command == Command.MEMORY | Command.BUS_MASTER | Command.INTX_DISABLE
    assert space.is_msix_enabled
    space.reset()
    assert (space.command, space.is_msix_enabled) == (0, False)


def test_without_the_capability_no_reset_is_wanted(space: ConfigSpace) -> None:
    space.write(0, b"\xff" * 256)
    assert not space.is_reset_wanted


@pytest.mark.parametrize(
    ("bar", "offset", "length", "expected"),
    [
        (0, 0x14, 1, BarAccess(0, 0x14, 1)),
        (5, 0xFFFF_FFFC, 4, BarAccess(5, 0xFFFF_FFFC, 4)),
        (6, 0, 4, None),
        (255, 0, 4, None),
        (0, 0, 0, None),
        (0, 0, 3, None),
        (0, 0, 8, None),
        (0, 0, 0xFFFF_FFFF, None),
        (0, 2, 4, None),
        (0, 1, 2, None),
    ],
)
def test_what_the_window_shows(
    space: ConfigSpace, bar: int, offset: int, length: int, expected: BarAccess | None
) -> None:
    space.write(WINDOW + 4, bytes((bar,)))
    space.write(WINDOW + 8, offset.to_bytes(4, "little") + length.to_bytes(4, "little"))
    assert space.window_access() == expected


def test_which_accesses_go_through_the_window(space: ConfigSpace) -> None:
    data = WINDOW + 16
    for offset, size in ((data, 4), (data + 3, 1), (data + 2, 2), (data - 2, 4)):
        assert space.is_window_access(offset, size)
    for offset, size in ((data - 4, 4), (data + 4, 1), (data + 1, 0), (0, 256), (data, 8)):
        assert not space.is_window_access(offset, size)


def test_a_successor_takes_the_bytes_over(space: ConfigSpace) -> None:
    space.write(0, b"\xff" * 256)
    image = space.read(0, 256)
    space.reset()
    space.restore(image)
    assert space.read(0, 256) == image


@pytest.mark.parametrize("offset", [0x02, 0x41, 0x9A])
def test_another_functions_bytes_are_refused(space: ConfigSpace, offset: int) -> None:
    image = bytearray(space.read(0, 256))
    image[offset] ^= 1
    with pytest.raises(InternalError, match="another function"):
        space.restore(bytes(image))


def test_bytes_of_another_size_are_refused(space: ConfigSpace) -> None:
    with pytest.raises(InternalError, match="another function"):
        space.restore(space.read(0, 256) + b"\0")
