from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from ballast.streams.direct import DirectSelector, add_reader, make_loop, remove_reader

Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
    with pair[0], pair[1]:
        yield pair


def resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def run(main: Main) -> None:
    with asyncio.Runner(loop_factory=lambda: make_loop(DirectSelector())) as runner:
        runner.run(main())


def test_a_reader_is_called_as_often_as_something_comes(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    seen: list[bytes] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        fd = ends[0].fileno()
        for value in (b"a", b"b"):
            found = loop.create_future()

            def read(found: asyncio.Future[None] = found) -> None:
                seen.append(ends[0].recv(1))
                found.set_result(None)

            # The second takes the place of the first.
            add_reader(loop, fd, read)
            loop.call_later(0.001, ends[1].send, value)
            await found
        remove_reader(loop, fd)
        remove_reader(loop, fd)
        ends[1].send(b"c")
        await asyncio.sleep(0.01)

    run(main)
    assert seen == [b"a", b"b"]


def test_what_was_due_before_is_done_before(ends: tuple[socket.socket, socket.socket]) -> None:
    order: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ends[1].send(b"x")
        found = loop.create_future()

        def read() -> None:
            order.append("reader")
            ends[0].recv(1)
            found.set_result(None)

        add_reader(loop, ends[0].fileno(), read)
        loop.call_soon(order.append, "due before")
        await found
        remove_reader(loop, ends[0].fileno())

    run(main)
    assert order == ["due before", "reader"]


def test_one_that_another_reader_has_removed_is_not_called() -> None:
    called: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        fds = [os.eventfd(0), os.eventfd(0)]

        def take(index: int) -> None:
            called.append(index)
            for fd in fds:
                remove_reader(loop, fd)

        for index, fd in enumerate(fds):
            add_reader(loop, fd, lambda index=index: take(index))  # type: ignore[misc]
        # Both are readable when the loop looks the next time.
        for fd in fds:
            os.eventfd_write(fd, 1)
        await asyncio.sleep(0.01)
        for fd in fds:
            os.close(fd)

    run(main)
    assert len(called) == 1


@pytest.mark.parametrize("is_waiting", [True, False])
def test_a_bug_in_a_reader_is_reported_and_the_loop_goes_on(
    ends: tuple[socket.socket, socket.socket], is_waiting: bool
) -> None:
    reported: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: reported.append(context))

        def read() -> None:
            ends[0].recv(1)
            raise ValueError("a bug")

        add_reader(loop, ends[0].fileno(), read)
        if is_waiting:
            loop.call_later(0.001, ends[1].send, b"x")
        else:
            ends[1].send(b"x")
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        remove_reader(loop, ends[0].fileno())

    run(main)
    assert [str(each["exception"]) for each in reported] == ["a bug"]


def test_the_loop_may_watch_the_same_descriptor_for_writing(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        read, written = loop.create_future(), loop.create_future()
        add_reader(loop, ends[0].fileno(), partial(resolve, read))
        loop.add_writer(ends[0], partial(resolve, written))
        await written
        assert not read.done()
        ends[1].send(b"x")
        await read
        loop.remove_writer(ends[0])
        remove_reader(loop, ends[0].fileno())

    run(main)


def test_what_cannot_be_waited_for_is_refused_and_timers_go_on() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with tempfile.TemporaryFile() as file, pytest.raises(OSError, match="not permitted"):
            add_reader(loop, file.fileno(), lambda: None)
        await asyncio.sleep(0.0001)

    run(main)


async def test_in_any_other_loop_readers_are_the_loops_own(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    loop = asyncio.get_running_loop()
    found = loop.create_future()
    add_reader(loop, ends[0].fileno(), partial(resolve, found))
    ends[1].send(b"x")
    await found
    assert loop.remove_reader(ends[0])
    remove_reader(loop, ends[0].fileno())
