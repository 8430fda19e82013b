from __future__ import annotations

import os
import socket

import pytest

from ballast.keeper.channel import ChannelClosedError, Outbox, pair, receive
from ballast.keeper.messages import MAX_FDS, decode, encode
from support.fds import none_left_open


def test_messages_are_those_of_sd_notify() -> None:
    message = encode(FDSTORE=1, FDNAME="vm/kick.0")
    assert message == b"FDSTORE=1\nFDNAME=vm/kick.0"
    assert decode(message) == {"FDSTORE": "1", "FDNAME": "vm/kick.0"}


def test_a_value_cannot_bring_an_assignment_of_its_own() -> None:
    assert decode(encode(STATUS="a\nGO=1\r\nb")) == {"STATUS": "a GO=1 b"}


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"no assignment", b"\n\n=\n" * 9])
def test_what_is_no_message_says_nothing(data: bytes) -> None:
    assert not decode(data).keys() - {""}


def test_descriptors_come_with_their_message() -> None:
    with none_left_open():
        ours, theirs = pair()
        with ours, theirs:
            assert receive(ours) is None
            outbox = Outbox(theirs)
            fds = [os.eventfd(0) for _ in range(MAX_FDS)]
            outbox.send(b"A=1", fds)
            outbox.send(b"B=1")
            assert not outbox
            received = receive(ours)
            assert received is not None
            assert received[0] == {"A": "1"}
            assert len(received[1]) == MAX_FDS
            assert receive(ours) == ({"B": "1"}, [])
            for fd in (*fds, *received[1]):
                os.close(fd)


def test_a_message_outlives_its_sender() -> None:
    with none_left_open():
        ours, theirs = pair()
        with ours:
            # It leaves without reading what was sent to it, which the kernel reports as an error.
            ours.send(b"X=1")
            fd = os.eventfd(0)
            socket.send_fds(theirs, [b"A=1"], [fd])
            os.close(fd)
            theirs.close()
            received = receive(ours)
            assert received is not None
            os.close(received[1][0])
            with pytest.raises(ChannelClosedError):
                receive(ours)


def test_what_the_kernel_does_not_take_yet_stays_in_order() -> None:
    with none_left_open():
        ours, theirs = pair()
        with ours, theirs:
            outbox, sent = Outbox(theirs), 0
            fd = os.eventfd(0)
            while not outbox or sent < 500:
                outbox.send(encode(N=sent, FILL="x" * 4000), [fd])
                sent += 1
            os.close(fd)
            found: list[int] = []
            while len(found) < sent:
                received = receive(ours)
                if received is None:
                    outbox.flush()
                    continue
                found.append(int(received[0]["N"]))
                os.close(received[1][0])
            assert found == list(range(sent))
            assert not outbox


def test_what_cannot_be_sent_any_more_is_forgotten() -> None:
    with none_left_open():
        ours, theirs = pair()
        with theirs:
            outbox = Outbox(theirs)
            ours.close()
            fd = os.eventfd(0)
            outbox.send(b"A=1", [fd])
            os.close(fd)
            assert not outbox
