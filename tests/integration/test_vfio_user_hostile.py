"""vfio-user clients that are broken or malicious: one connection ends, nothing leaks."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ballast.virtio_pci.layout import Variant
from ballast_protocol.vfio_user.codes import Command, HeaderFlag, PciIrq, PciRegion
from ballast_protocol.vfio_user.message import DeviceInfo, Header, pack_message
from ballast_protocol.virtio.balloon import BalloonQueue
from ballast_protocol.virtio.pci.structures import StructureType
from support import vfio_link
from support.backend import until
from support.driver import PAGE_SIZE
from support.fds import none_left_open, open_fds
from support.link import FrontendError, send_all
from support.machine import FREE, RAM_BYTES
from support.vfio_client import Range, VfioClient
from support.vfio_machine import VfioBackend, VfioMachine, vfio_backend_at, vfio_machine_at
from support.vfio_messages import (
    REFUSED,
    SERVED,
    access,
    hello,
    set_irqs,
)

INFLATE = BalloonQueue.INFLATE
VERSION = pack_message(1, Command.VERSION, hello())


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[VfioBackend]:
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    with none_left_open():
        async with vfio_backend_at(tmp_path / "s") as backend:
            yield backend
    assert not failures


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


class Raw:
    """A connection on which anything can be said."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.setblocking(False)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        await send_all(self.socket, data, fds)

    async def receive(self) -> Header:
        """Return the next message's header, and drop the rest."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            data = await loop.sock_recv(self.socket, Header.SIZE)
            header = Header.unpack(data)
            left = header.size - Header.SIZE
            while left:
                left -= len(await loop.sock_recv(self.socket, left))
        return header

    async def hung_up(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            with suppress(ConnectionResetError):
                while await loop.sock_recv(self.socket, 1 << 16):
                    pass


async def still_serves(backend: VfioBackend) -> None:
    """Check that a well-behaved machine can come now."""
    await backend.alone()
    async with vfio_machine_at(backend.path) as machine:
        await machine.start()
        await machine.inflate(FREE[0])
        assert backend.held == {FREE[0]}
    await backend.alone()


# Frames


WHOLE = pack_message(2, Command.REGION_WRITE, access(PciRegion.CONFIG, 4, 2, b"\6\0"))


@pytest.mark.parametrize("length", range(1, len(WHOLE)))
async def test_the_end_in_mid_message(backend: VfioBackend, length: int) -> None:
    with Raw(backend.path) as raw:
        await raw.send(VERSION)
        assert (await raw.receive()).command == Command.VERSION
        await raw.send(WHOLE[:length])
    await until(lambda: backend.server.session is None)


async def test_messages_in_single_bytes(backend: VfioBackend) -> None:
    with Raw(backend.path) as raw:
        for byte in VERSION + WHOLE + WHOLE:
            await raw.send(bytes([byte]))
            await asyncio.sleep(0)
        for command in (Command.VERSION, Command.REGION_WRITE, Command.REGION_WRITE):
            assert (await raw.receive()).command == command


@pytest.mark.parametrize(
    "frame",
    [
        Header(1, Command.REGION_READ, 15, HeaderFlag(0)).pack(),
        Header(1, Command.REGION_WRITE, 1 << 31, HeaderFlag(0)).pack(),
        Header(1, Command.DEVICE_RESET, 16, HeaderFlag(3)).pack(),
        Header(1, Command.DEVICE_RESET, 16, HeaderFlag(0x80)).pack(),
        Header(1, Command.DMA_READ, 36, HeaderFlag.REPLY).pack() + bytes(20),
        bytes(16),
        b"GET / HTTP/1.1\r\n",
    ],
)
@pytest.mark.parametrize("first", [VERSION, b""], ids=["after-version", "at-once"])
async def test_a_broken_frame_ends_the_connection(
    backend: VfioBackend, first: bytes, frame: bytes
) -> None:
    with Raw(backend.path) as raw:
        await raw.send(first + frame)
        await raw.hung_up()
    await still_serves(backend)


async def test_a_client_that_asks_and_never_reads(backend: VfioBackend) -> None:
    question = pack_message(2, Command.REGION_READ, access(PciRegion.CONFIG, 0, 256)) * 50
    with Raw(backend.path) as raw, suppress(BrokenPipeError, ConnectionResetError):
        await raw.send(VERSION)
        for _ in range(10_000):
            await raw.send(question)
    await still_serves(backend)


# Descriptors


async def test_a_descriptor_in_the_middle_of_a_payload_is_an_error(
    backend: VfioBackend, eventfd: int
) -> None:
    with Raw(backend.path) as raw:
        await raw.send(VERSION)
        await raw.receive()
        message = pack_message(2, Command.DEVICE_SET_IRQS, set_irqs(0x24, PciIrq.MSIX, 0, 1))
        await raw.send(message[:16])
        for _ in range(3):
            await asyncio.sleep(0)
        await raw.send(message[16:], (eventfd,))
        await raw.hung_up()
    await still_serves(backend)


async def test_descriptors_cannot_be_piled_up(backend: VfioBackend, eventfd: int) -> None:
    before = len(open_fds())
    most = 0
    with Raw(backend.path) as raw, suppress(BrokenPipeError, ConnectionResetError):
        await raw.send(VERSION)
        await raw.receive()
        await raw.send(Header(2, Command.REGION_WRITE, 4096, HeaderFlag(0)).pack())
        for _ in range(100):
            await raw.send(b"x", [eventfd] * 16)
            await asyncio.sleep(0)
            most = max(most, len(open_fds()) - before)
    assert most <= 40
    await still_serves(backend)


@pytest.mark.parametrize(
    ("code", "payload"),
    [(code, payload) for code, payload, *_ in (*SERVED, *REFUSED) if code != Command.VERSION],
)
@pytest.mark.parametrize("count", [1, 7, 16])
async def test_descriptors_where_none_or_fewer_belong(
    backend: VfioBackend, eventfd: int, code: Command, payload: bytes, count: int
) -> None:
    with Raw(backend.path) as raw:
        await raw.send(VERSION)
        await raw.receive()
        before = len(open_fds())
        await raw.send(pack_message(2, code, payload), [eventfd] * count)
        assert (await raw.receive()).command == code
        await raw.send(pack_message(3, Command.DEVICE_GET_INFO, DeviceInfo(16).pack()))
        assert not (await raw.receive()).flags & HeaderFlag.ERROR
        # At most what was asked to be kept: the eventfd of one interrupt.
        assert len(open_fds()) <= before + 1
    await still_serves(backend)


async def test_more_descriptors_than_any_message_has(backend: VfioBackend, eventfd: int) -> None:
    with Raw(backend.path) as raw:
        await raw.send(VERSION, [eventfd] * 17)
        await raw.hung_up()
    await still_serves(backend)


# Neighbours, order, the end


async def test_a_second_connection_is_refused_and_the_first_lives(backend: VfioBackend) -> None:
    async with vfio_machine_at(backend.path) as machine:
        await machine.start()
        for _ in range(3):
            with Raw(backend.path) as second:
                await second.hung_up()
        await machine.inflate(FREE[0])
        assert backend.held == {FREE[0]}
        assert backend.server.status()["refused-connections"] == 3


async def test_a_flood_does_not_starve_a_neighbour(tmp_path: Path) -> None:
    async with (
        vfio_backend_at(tmp_path / "a") as one,
        vfio_backend_at(tmp_path / "b") as two,
        vfio_machine_at(one.path) as bad,
        vfio_machine_at(two.path) as good,
    ):
        await bad.start()
        await good.start()
        await bad.ring(INFLATE)  # has one question asked, whose answer would get into the flood
        await until(lambda: not one.session._function.probe.state.is_waiting)
        end = asyncio.Event()

        async def flood() -> None:
            payload = access(0, 0x3000, 2, b"\0\0")
            messages = pack_message(0, Command.REGION_WRITE, payload, HeaderFlag.NO_REPLY) * 200
            while not end.is_set():
                await bad.client.send_raw(messages)

        flooding = asyncio.create_task(flood())
        for number in range(20):
            one.device.set_target((number + 1) << 20)
            await good.inflate(FREE[number])
        end.set()
        await flooding
        assert two.held == set(FREE[:20])


async def test_the_death_of_one_client_is_not_felt_by_another(tmp_path: Path) -> None:
    async with (
        vfio_backend_at(tmp_path / "a") as one,
        vfio_backend_at(tmp_path / "b") as two,
        vfio_machine_at(two.path) as good,
    ):
        await good.start()
        for number in range(10):
            async with vfio_machine_at(one.path) as bad:
                await bad.start()
                await bad.client.send_raw(Header(0, 9, 3, HeaderFlag(0)).pack())
                await good.inflate(FREE[number])
            await one.alone()
        assert two.held == set(FREE[:10])


async def life(machine: VfioMachine) -> None:
    await machine.start()
    await machine.offer_statistics(1)
    await machine.inflate(*FREE[:10])
    await machine.set_actual(10)
    fd = machine.ram.regions[0].fd
    await machine.client.shuffle(Range(0, RAM_BYTES // 2, 0, fd))
    await machine.client.reset()


@pytest.mark.parametrize("variant", list(Variant))
async def test_a_client_may_go_at_any_moment(
    tmp_path: Path, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    left = 0

    async def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
        nonlocal left
        if not left:
            raise FrontendError("enough")
        left -= 1
        await send_all(sock, data, fds)

    with none_left_open():
        async with vfio_backend_at(tmp_path / "s", variant) as backend:
            for moment in (*range(60), *range(60, 400, 9)):
                left = moment
                with monkeypatch.context() as patch, suppress(FrontendError):
                    patch.setattr(vfio_link, "send_all", send)
                    async with vfio_machine_at(backend.path) as machine:
                        await life(machine)
                await backend.alone()
                assert not backend.device.is_running
                assert backend.device.pages.memory.regions == ()
            await still_serves(backend)
    assert not failures


async def test_the_server_may_go_while_queues_are_served(backend: VfioBackend) -> None:
    async with vfio_machine_at(backend.path) as machine:
        await machine.start()
        driver = machine.queues[INFLATE]
        for page in FREE[:128]:
            driver.add_out(page.to_bytes(4, "little"))
        await machine.client.send_raw(machine.posted(StructureType.NOTIFY, 0, 2, 0))
        await until(lambda: driver.used_waiting > 0)
        await backend.server.close()
        used = driver.used_waiting
        await asyncio.sleep(0.01)  # whatever was still due in the loop had its chance
        assert driver.used_waiting == used


# Random


MESSAGE = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda command, payload, flags: pack_message(1, command, payload, HeaderFlag(flags)),
        st.integers(0, 20),
        st.binary(max_size=64),
        st.sampled_from([0, 0, 0, 0x10, 1, 0x21]),
    ),
    st.sampled_from([*SERVED]).map(lambda each: pack_message(1, each[0], each[1])),
    st.builds(
        lambda region, offset, data: pack_message(
            1, Command.REGION_WRITE, access(region, offset, len(data), data), HeaderFlag.NO_REPLY
        ),
        st.sampled_from([0, 7]),
        st.one_of(st.integers(0, 0x3F), st.integers(0, 0x4000)),
        st.binary(min_size=1, max_size=8),
    ),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(Variant),
    st.booleans(),
    st.lists(MESSAGE, max_size=16),
    st.lists(st.integers(0, 3), max_size=16),
)
def test_garbage_ends_one_connection_and_nothing_else(
    tmp_path: Path, variant: Variant, is_started: bool, messages: list[bytes], fd_counts: list[int]
) -> None:
    asyncio.run(_send_garbage(tmp_path / "s", variant, is_started, messages, fd_counts))


async def _send_garbage(
    path: Path, variant: Variant, is_started: bool, messages: list[bytes], fd_counts: list[int]
) -> None:
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    with none_left_open():
        async with vfio_backend_at(path, variant) as backend:
            fd = os.memfd_create("garbage")
            os.ftruncate(fd, PAGE_SIZE)
            client = await VfioClient.connect(path)
            with suppress(FrontendError, OSError):
                if is_started:
                    await client.send_raw(VERSION)
                for number, message in enumerate(messages):
                    count = fd_counts[number] if number < len(fd_counts) else 0
                    if message:
                        await client.send_raw(message, [fd] * count)
                await asyncio.sleep(0)
            await client.close()
            os.close(fd)
            await backend.alone()
            assert backend.device.ram_bytes == 0
    assert not failures
