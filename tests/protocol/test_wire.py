"""The declared structures: layout, round trip, and each way to be refused."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.errors import InternalError, MalformedError, TruncatedError
from ballast_protocol.wire import LITTLE, U8, U16, U32, U64, Wire


class Colour(IntEnum):
    RED = 1
    BLUE = 7


class Mark(IntFlag):
    A = 1


@dataclass(frozen=True, slots=True)
class Sample(Wire, byte_order=LITTLE):
    tiny: U8
    short: U16
    colour: Annotated[Colour, "I"]
    long: U64
    marks: Annotated[Mark, "H"] = Mark.A


@dataclass(frozen=True, slots=True)
class BigEndian(Wire, byte_order=">"):
    number: U32


SAMPLE = Sample(0x11, 0x2233, Colour.BLUE, 0x0102030405060708)
SAMPLE_HEX = "11 3322 07000000 0807060504030201 0100"


def test_layout_is_packed_in_the_order_of_declaration() -> None:
    assert Sample.SIZE == 17
    assert SAMPLE.pack() == bytes.fromhex(SAMPLE_HEX)
    assert BigEndian(1).pack() == b"\0\0\0\1"


def test_unpack_gives_back_the_value_with_its_enumerations() -> None:
    found = Sample.unpack(bytes.fromhex(SAMPLE_HEX))
    assert found == SAMPLE
    assert isinstance(found.colour, Colour)
    assert isinstance(found.marks, Mark)


def test_unpack_starts_at_the_offset_and_leaves_the_rest() -> None:
    data = b"\xee" * 5 + SAMPLE.pack() + b"\xff" * 3
    assert Sample.unpack(data, 5) == SAMPLE
    assert Sample.unpack(memoryview(data), 5) == SAMPLE


@pytest.mark.parametrize("size", range(17))
def test_every_truncation_is_reported_with_both_sizes(size: int) -> None:
    with pytest.raises(TruncatedError, match=rf"Sample has 17 bytes, but only {size} came"):
        Sample.unpack(SAMPLE.pack()[:size])


def test_an_offset_beyond_the_end_is_a_truncation() -> None:
    with pytest.raises(TruncatedError, match="only 0 came"):
        Sample.unpack(SAMPLE.pack(), 40)


def test_a_number_that_the_enumeration_lacks_is_malformed() -> None:
    data = bytearray(SAMPLE.pack())
    data[3] = 2
    with pytest.raises(MalformedError, match="Sample: 2 is not a valid Colour"):
        Sample.unpack(bytes(data))


def test_unknown_flag_bits_survive() -> None:
    data = SAMPLE.pack()[:-2] + b"\x01\x80"
    assert Sample.unpack(data).marks == 0x8001
    assert Sample.unpack(data).pack() == data


def test_a_value_too_large_for_its_field_is_our_own_fault() -> None:
    with pytest.raises(InternalError, match="cannot be packed"):
        BigEndian(1 << 32).pack()


@given(st.binary(min_size=4, max_size=4))
def test_any_bytes_of_a_plain_structure_round_trip(data: bytes) -> None:
    assert BigEndian.unpack(data).pack() == data
