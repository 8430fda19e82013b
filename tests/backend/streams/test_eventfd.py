from __future__ import annotations

import asyncio
import os
import select
import socket
import tempfile
from collections.abc import AsyncIterator

import pytest

from ballast.streams.eventfd import CallFd, KickFd
from ballast_protocol.errors import MalformedError
from support.fds import none_left_open


class Kicks:
    """Counts kicks, and lets a test wait for one."""

    def __init__(self) -> None:
        self.count = 0
        self.came = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.came.set()


@pytest.fixture(autouse=True)
async def no_leaks() -> AsyncIterator[None]:
    with none_left_open():
        yield


async def turns(count: int = 5) -> None:
    """Let the loop look at its descriptors a few times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_many_writes_before_a_look_are_one_kick() -> None:
    fd, kicks = os.eventfd(0), Kicks()
    kick = KickFd(fd, kicks)
    for _ in range(3):
        os.eventfd_write(fd, 1)
    await kicks.came.wait()
    await turns()
    assert kicks.count == 1
    kick.close()
    kick.close()


async def test_a_kick_from_before_is_heard() -> None:
    fd, kicks = os.eventfd(5), Kicks()
    kick = KickFd(fd, kicks)
    await kicks.came.wait()
    kick.close()


async def test_nothing_is_heard_after_closing() -> None:
    fd, kicks = os.eventfd(0), Kicks()
    other = os.dup(fd)
    kick = KickFd(fd, kicks)
    os.eventfd_write(other, 1)
    kick.close()
    await turns()
    assert kicks.count == 0
    os.close(other)


async def test_a_file_cannot_be_waited_for_and_stays_with_the_caller() -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(MalformedError, match="cannot be waited for"):
            KickFd(file.fileno(), Kicks())
        os.fstat(file.fileno())


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_an_end_that_is_gone_is_watched_no_longer(kind: str) -> None:
    if kind == "pipe":
        ours, theirs = os.pipe()
    else:
        ours, theirs = (each.detach() for each in socket.socketpair())
    kicks = Kicks()
    kick = KickFd(ours, kicks)
    os.close(theirs)
    await turns()
    assert kicks.count == 0
    assert not asyncio.get_running_loop().remove_reader(ours)
    kick.close()


async def test_a_descriptor_that_cannot_be_read_is_watched_no_longer() -> None:
    # An epoll descriptor is readable when one inside it is, but has nothing that `read` could take.
    inside, kicks = os.eventfd(1), Kicks()
    with select.epoll() as epoll:
        epoll.register(inside, select.EPOLLIN)
        watched = os.dup(epoll.fileno())
        kick = KickFd(watched, kicks)
        await turns()
        assert kicks.count == 0
        assert not asyncio.get_running_loop().remove_reader(watched)
        kick.close()
    os.close(inside)


async def test_a_call_adds_one() -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    call = CallFd(os.dup(fd))
    call.signal()
    call.signal()
    assert os.eventfd_read(fd) == 2
    call.close()
    call.close()
    os.close(fd)


async def test_a_full_counter_does_not_block() -> None:
    fd = os.eventfd(0)
    call = CallFd(os.dup(fd))
    os.eventfd_write(fd, (1 << 64) - 2)
    call.signal()
    assert os.eventfd_read(fd) == (1 << 64) - 2
    call.close()
    os.close(fd)


async def test_a_pipe_whose_reader_is_gone_does_no_harm() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    call = CallFd(writing)
    call.signal()
    call.close()
