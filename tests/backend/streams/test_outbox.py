from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from ballast.streams.outbox import KEEP_BYTES, Outbox
from ballast_protocol.errors import StateError
from support.fds import none_left_open


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with none_left_open():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        with ours, theirs:
            yield ours, theirs


def successor_of(outbox: Outbox, end: int | None = None) -> Outbox:
    return Outbox(os.dup(outbox.fd), end)


def received(sock: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            data += sock.recv(1 << 20)
        except BlockingIOError:
            return data


def test_a_successor_sends_exactly_the_rest(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    outbox = Outbox()
    everything = b"".join(number.to_bytes(4, "big") for number in range(1 << 17))
    outbox.append(everything[:-4])
    outbox.append(everything[-4:])
    data = b""
    while True:
        done = outbox.flush(ours.fileno())
        data += received(theirs)
        if done:
            break
        assert outbox.pending
        after = successor_of(outbox)
        assert (after.sent, after.pending) == (outbox.sent, outbox.pending)
        outbox.close()
        outbox = after
    assert data == everything
    outbox.close()
    outbox.close()


def test_what_was_not_counted_is_never_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    outbox = Outbox()
    outbox.append(b"saved")
    end = outbox.end
    outbox.append(b", and not saved")
    after = successor_of(outbox, end)
    outbox.close()
    after.append(b"!")
    after.flush(ours.fileno())
    assert received(theirs) == b"saved!"
    after.close()


def test_more_sent_than_there_was_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    outbox = Outbox()
    outbox.append(b"sent")
    outbox.flush(pair[0].fileno())
    with pytest.raises(StateError, match="4 bytes of 3"):
        Outbox(outbox.fd, 3)
    outbox.close()


def test_bytes_on_their_way_stay_what_they_were(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """The kernel passes on pages: freeing and appending must not change what waits to be read."""
    ours, theirs = pair
    outbox, expected, data = Outbox(), b"", b""
    block = 0
    while outbox.end < 3 * KEEP_BYTES:
        block += 1
        message = block.to_bytes(3, "big") * 5000
        expected += message
        outbox.append(message)
        while not outbox.flush(ours.fileno()):
            data += received(theirs)
    data += received(theirs)
    assert data == expected
    assert os.fstat(outbox.fd).st_blocks * 512 < 2 * KEEP_BYTES
    outbox.close()
