"""Tables of registers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.pci.config_space import Express, Header, Msix
from ballast_protocol.virtio.pci.registers import RegisterTable
from ballast_protocol.virtio.pci.structures import Common, PciCfg

TABLES: list[type[RegisterTable]] = [Header, Msix, Express, PciCfg, Common]


@pytest.mark.parametrize("table", TABLES)
def test_registers_are_aligned_do_not_overlap_and_are_not_wider_than_their_masks(
    table: type[RegisterTable],
) -> None:
    end = 0
    for register in table:
        assert register.offset >= end
        assert register.width == 3 or register.offset % register.width == 0
        assert register.writable < 1 << 8 * register.width
        end = register.offset + register.width


@given(st.integers(0, 0xFFFF), st.integers(0, 8))
def test_put_changes_one_register_and_get_reads_it(value: int, base: int) -> None:
    space = bytearray(b"\xaa" * 32)
    Header.COMMAND.put(space, value, base)
    assert Header.COMMAND.get(space, base) == value
    start = base + 4
    assert space[start : start + 2] == value.to_bytes(2, "little")
    assert space[:start] + space[start + 2 :] == b"\xaa" * 30


def test_a_value_that_does_not_fit_is_our_bug() -> None:
    for value in (0x100, -1):
        with pytest.raises(InternalError, match="REVISION"):
            Header.REVISION.put(bytearray(64), value)
