from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.errors import InternalError
from ballast_protocol.guest_framing import (
    HEADER_SIZE,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    MAX_REQUEST_ID,
    Frame,
    FrameDecoder,
)

FRAME = Frame(kind=5, request_id=7, payload=b'{"a":1}', version=1)

frames = st.builds(
    Frame,
    kind=st.integers(0, 127),
    request_id=st.integers(0, MAX_REQUEST_ID),
    payload=st.text(alphabet=st.characters(max_codepoint=127), max_size=60).map(str.encode),
    version=st.integers(1, 127),
)


def fake_header(length: int, reserved: int = 0) -> bytes:
    return struct.pack("<4sBBHIII", MAGIC, 1, 5, reserved, 9, length, 0)


garbage = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([*(bytes([b]) for b in MAGIC), MAGIC, b"\0", b"{"])).map(b"".join),
    st.builds(lambda frame, cut: frame.pack()[: -cut or None], frames, st.integers(1, 30)),
    st.builds(
        fake_header, st.integers(0, 1 << 32).map(lambda n: n & 0xFFFF_FFFF), st.integers(0, 1)
    ),
)


def test_layout_is_as_documented() -> None:
    header = bytes.fromhex("baa1a5f1 01 05 0000 07000000 07000000")
    crc = zlib.crc32(header + FRAME.payload) & 0x7FFF_FFFF
    assert FRAME.pack() == header + crc.to_bytes(4, "little") + FRAME.payload


@given(frames)
def test_whole_byte_by_byte_and_with_more_behind(frame: Frame) -> None:
    packed = frame.pack()
    assert FrameDecoder().feed(packed) == [frame]
    slow = FrameDecoder()
    assert [f for byte in packed for f in slow.feed(bytes([byte]))] == [frame]
    assert FrameDecoder().feed(packed + packed + packed[:9]) == [frame, frame]


@given(frames)
def test_magic_occurs_nowhere_but_at_the_start(frame: Frame) -> None:
    assert (frame.pack() + MAGIC).find(MAGIC, 1) == len(frame.pack())


@given(st.lists(st.tuples(garbage, frames), min_size=1, max_size=6))
def test_every_good_frame_is_delivered_with_its_last_byte(parts: list[tuple[bytes, Frame]]) -> None:
    decoder = FrameDecoder()
    for noise, frame in parts:
        decoder.feed(noise)
        packed = frame.pack()
        decoder.feed(packed[:-1])
        delivered = decoder.feed(packed[-1:])
        assert delivered == [frame]


@given(st.lists(st.tuples(garbage, frames), max_size=6), st.integers(1, 40))
def test_pieces_do_not_matter(parts: list[tuple[bytes, Frame]], size: int) -> None:
    stream = b"".join(noise + frame.pack() for noise, frame in parts)
    whole, pieces = FrameDecoder(), FrameDecoder()
    expected = whole.feed(stream)
    got = [f for at in range(0, len(stream), size) for f in pieces.feed(stream[at : at + size])]
    assert got == expected
    assert pieces.skipped_bytes == whole.skipped_bytes


@pytest.mark.parametrize("cut", range(1, len(FRAME.pack())))
def test_a_cut_frame_costs_only_itself(cut: int) -> None:
    decoder = FrameDecoder()
    assert decoder.feed(FRAME.pack()[:cut] + FRAME.pack()) == [FRAME]
    assert decoder.skipped_bytes == cut


@pytest.mark.parametrize("position", range(len(FRAME.pack())))
def test_a_damaged_byte_costs_only_its_frame(position: int) -> None:
    damaged = bytearray(FRAME.pack())
    damaged[position] ^= 0x20
    follower = Frame(kind=1, request_id=0, payload=b"{}", version=1)
    decoder = FrameDecoder()
    assert decoder.feed(bytes(damaged) + follower.pack()) == [follower]
    assert decoder.skipped_bytes == len(damaged)


def test_no_more_than_one_longest_frame_is_waited_for() -> None:
    decoder = FrameDecoder()
    assert decoder.feed(fake_header(MAX_PAYLOAD_BYTES) + b"x" * (MAX_PAYLOAD_BYTES - 1)) == []
    assert decoder.skipped_bytes == 0
    decoder.feed(b"x")
    assert decoder.skipped_bytes == HEADER_SIZE + MAX_PAYLOAD_BYTES
    decoder.feed(fake_header(MAX_PAYLOAD_BYTES + 1))
    assert decoder.skipped_bytes == 2 * HEADER_SIZE + MAX_PAYLOAD_BYTES


def test_reset_forgets_a_half_message() -> None:
    decoder = FrameDecoder()
    decoder.feed(FRAME.pack()[:-1])
    decoder.reset()
    assert decoder.feed(FRAME.pack()[-1:]) == []
    assert decoder.feed(FRAME.pack()) == [FRAME]


@pytest.mark.parametrize(
    "frame",
    [
        Frame(128, 0, b"", 1),
        Frame(1, 0, b"", 0),
        Frame(1, MAX_REQUEST_ID + 1, b"", 1),
        Frame(1, 0, b"\x80", 1),
        Frame(1, 0, b" " * (MAX_PAYLOAD_BYTES + 1), 1),
    ],
)
def test_unrecognisable_frames_cannot_be_sent(frame: Frame) -> None:
    with pytest.raises(InternalError):
        frame.pack()
