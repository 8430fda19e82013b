"""The log goes to standard error, which may be anything, and may be stuck."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ballast.keeper.logs import say
from support.fds import none_left_open


@contextmanager
def standard_error(fd: int) -> Iterator[None]:
    saved = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def test_a_pipe_that_nobody_reads_holds_nobody_up() -> None:
    with none_left_open():
        inside, outside = os.pipe()
        fcntl.fcntl(outside, fcntl.F_SETPIPE_SZ, 4096)
        with standard_error(outside):
            for number in range(200):
                say(f"line {number}")
        os.close(outside)
        text = os.read(inside, 1 << 20).decode()
        assert "keeper: line 0\n" in text
        assert text.endswith("\n")
        assert "line 199" not in text
        os.close(inside)


def test_a_socket_that_nobody_reads_holds_nobody_up() -> None:
    # systemd's journal is one.
    with none_left_open():
        ours, theirs = socket.socketpair()
        with ours, theirs, standard_error(theirs.fileno()):
            for _ in range(3000):
                say("x" * 500)
            assert ours.recv(600).endswith(b"x")
        assert ours.fileno() == -1


def test_a_closed_end_is_no_reason_to_end() -> None:
    with none_left_open():
        inside, outside = os.pipe()
        os.close(inside)
        with standard_error(outside):
            say("hello?")
        os.close(outside)


def test_a_line_is_short_enough_to_be_written_at_once() -> None:
    with none_left_open():
        inside, outside = os.pipe()
        with standard_error(outside):
            say("ä" * 10000)
        os.close(outside)
        assert len(os.read(inside, 1 << 20)) <= 4096
        os.close(inside)
