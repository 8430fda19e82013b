"""Front-ends that are broken or malicious: one connection ends, nothing leaks, others live on."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ballast.transport import server as server_module
from ballast_protocol.vhost_user.message import (
    Header,
    HeaderFlag,
    MemoryRegion,
    Request,
    U64Payload,
    VringAddress,
    VringAddrFlag,
    VringState,
    pack_message,
    pack_region_table,
    pack_single_region,
)
from ballast_protocol.virtio.balloon import BalloonQueue
from support.backend import Backend, backend_at, until
from support.driver import GuestRam, RamBlock
from support.fds import none_left_open, open_fds
from support.frontend import Frontend
from support.link import FrontendError, RefusedError, read_exactly
from support.machine import FREE, machine_at
from support.vhost_messages import REFUSED, SERVED


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    with none_left_open():
        async with backend_at(tmp_path / "s") as backend:
            yield backend


@pytest.fixture
async def frontend(backend: Backend) -> AsyncIterator[Frontend]:
    async with await Frontend.connect(backend.path) as frontend:
        yield frontend


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


async def still_serves(backend: Backend) -> None:
    """Check that a well-behaved machine can come now."""
    await backend.alone()
    async with machine_at(backend.path) as machine:
        await machine.start()
        await machine.inflate(FREE[0])
        assert backend.held == {FREE[0]}
    await backend.alone()


async def hung_up(frontend: Frontend) -> None:
    """Wait until the back-end has closed the connection."""
    with pytest.raises((FrontendError, ConnectionResetError)):
        await read_exactly(frontend.socket, 1 << 20)


WHOLE = pack_message(Request.SET_VRING_NUM, VringState(0, 128).pack())


@pytest.mark.parametrize("length", range(1, len(WHOLE)))
async def test_the_end_in_mid_message(backend: Backend, length: int) -> None:
    async with await Frontend.connect(backend.path) as frontend:
        await frontend.send_raw(WHOLE[:length])
        await until(lambda: backend.server.session is not None)
    await backend.alone()


async def test_a_message_in_single_bytes(frontend: Frontend) -> None:
    await frontend.handshake()
    need_reply = HeaderFlag.VERSION | HeaderFlag.NEED_REPLY
    for byte in pack_message(Request.SET_VRING_NUM, VringState(0, 128).pack(), need_reply):
        await frontend.send_raw(bytes([byte]))
        await asyncio.sleep(0)
    header, _ = await frontend.receive()
    assert header.request == Request.SET_VRING_NUM


async def test_a_descriptor_belongs_to_its_message_however_that_is_cut(
    backend: Backend, frontend: Frontend, eventfd: int
) -> None:
    await frontend.handshake()
    need_reply = HeaderFlag.VERSION | HeaderFlag.NEED_REPLY
    message = pack_message(Request.SET_VRING_CALL, U64Payload(0).pack(), need_reply)
    await frontend.send_raw(message[:1], (eventfd,))
    await frontend.send_raw(b"")
    for _ in range(3):
        await asyncio.sleep(0)
    await frontend.send_raw(message[1:])
    header, status = await frontend.receive()
    assert (header.request, U64Payload.unpack(status).value) == (Request.SET_VRING_CALL, 0)


async def test_a_descriptor_in_the_middle_of_a_payload_is_an_error(
    backend: Backend, frontend: Frontend, eventfd: int
) -> None:
    message = pack_message(Request.SET_VRING_CALL, U64Payload(0x100).pack())
    await frontend.send_raw(message[:16])
    for _ in range(3):
        await asyncio.sleep(0)
    await frontend.send_raw(message[16:], (eventfd,))
    await hung_up(frontend)
    await still_serves(backend)


async def test_descriptors_cannot_be_piled_up(
    backend: Backend, frontend: Frontend, eventfd: int
) -> None:
    """A payload of 4 KiB, byte for byte with 16 descriptors each, would be all that we may open."""
    before = len(open_fds())
    await frontend.send_raw(Header(999, HeaderFlag.VERSION, 4096).pack())
    most = 0
    with suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(100):
            await frontend.send_raw(b"x", [eventfd] * 16)
            await asyncio.sleep(0)
            most = max(most, len(open_fds()) - before)
    assert most <= 32
    await still_serves(backend)


@pytest.mark.parametrize("count", [1, 9, 16, 17, 100])
async def test_descriptors_that_nobody_asked_for(
    backend: Backend, frontend: Frontend, eventfd: int, count: int
) -> None:
    await frontend.send_raw(pack_message(Request.GET_FEATURES), [eventfd] * count)
    await hung_up(frontend)
    await still_serves(backend)


@pytest.mark.parametrize(
    ("code", "payload"), [(code, payload) for code, payload, *_ in (*SERVED, *REFUSED)]
)
async def test_every_message_with_a_descriptor_too_many(
    backend: Backend, frontend: Frontend, eventfd: int, code: Request, payload: bytes
) -> None:
    await frontend.handshake()
    await frontend.send_raw(pack_message(code, payload), [eventfd] * 9)
    await hung_up(frontend)
    await still_serves(backend)


@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "socket"])
async def test_a_kick_that_is_no_eventfd(backend: Backend, frontend: Frontend, kind: str) -> None:
    await frontend.handshake()
    with _garbage(kind) as fd:
        await frontend.send_raw(pack_message(Request.SET_VRING_KICK, U64Payload(0).pack()), (fd,))
    if kind in ("file", "folder"):
        await hung_up(frontend)
    else:
        assert await frontend.ask_u64(Request.GET_FEATURES)
        await frontend.close()
    await still_serves(backend)


@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
async def test_a_channel_that_is_no_socket(backend: Backend, frontend: Frontend, kind: str) -> None:
    await frontend.handshake()
    with _garbage(kind) as fd:
        await frontend.send_raw(pack_message(Request.SET_BACKEND_REQ_FD), (fd,))
    await hung_up(frontend)
    await still_serves(backend)


@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "socket"])
async def test_calls_that_are_no_eventfds(backend: Backend, kind: str) -> None:
    async with machine_at(backend.path) as machine:
        await machine.start()
        with _garbage(kind) as fd:
            for request in (Request.SET_VRING_CALL, Request.SET_VRING_ERR):
                await machine.frontend.tell(request, U64Payload(0).pack(), (fd,))
        machine.queues[next(iter(machine.queues))].add_out(FREE[0].to_bytes(4, "little"))
        machine.frontend.kick(0)
        await until(lambda: backend.held == {FREE[0]})
    await still_serves(backend)


@contextmanager
def _garbage(kind: str) -> Iterator[int]:
    """Lend a descriptor of another kind, whose other end, if it has one, is gone."""
    if kind == "file":
        with tempfile.TemporaryFile() as file:
            yield file.fileno()
    elif kind == "folder":
        fd = os.open("/", os.O_RDONLY)
        yield fd
        os.close(fd)
    elif kind == "pipe":
        reading, writing = os.pipe()
        os.close(writing)
        yield reading
        os.close(reading)
    else:
        ours, theirs = socket.socketpair()
        theirs.close()
        with ours:
            yield ours.fileno()


@pytest.mark.parametrize(
    "region",
    [
        MemoryRegion(0, 1 << 30, 0, 0),
        MemoryRegion(0, 1 << 19, 0, 1 << 20),
        MemoryRegion(512, 4096, 0, 0),
        MemoryRegion(1 << 60, 4096, 0, 0),
    ],
)
async def test_a_region_beyond_its_file_is_refused(
    backend: Backend, frontend: Frontend, region: MemoryRegion
) -> None:
    await frontend.handshake()
    with GuestRam.of(RamBlock(0, 1 << 20)) as ram:
        fd = ram.regions[0].fd
        for _ in range(3):
            with pytest.raises(RefusedError):
                await frontend.tell(Request.ADD_MEM_REG, pack_single_region(region), (fd,))
        good = ram.regions[0].region
        await frontend.tell(Request.SET_MEM_TABLE, pack_region_table((good,)), (fd,))
        with pytest.raises(RefusedError):
            await frontend.tell(Request.SET_MEM_TABLE, pack_region_table((good, region)), (fd, fd))
        with pytest.raises(RefusedError):
            await frontend.tell(Request.REM_MEM_REG, pack_single_region(region))
        await frontend.tell(Request.REM_MEM_REG, pack_single_region(good))


async def test_a_ring_described_as_nonsense_breaks_and_is_told(
    backend: Backend, frontend: Frontend, eventfd: int
) -> None:
    await frontend.handshake()
    await frontend.post(Request.SET_VRING_NUM, VringState(0, 77).pack())
    nowhere = VringAddress(0, VringAddrFlag.NONE, 1, (1 << 64) - 1, 3)
    await frontend.post(Request.SET_VRING_ADDR, nowhere.pack())
    await frontend.tell(Request.SET_VRING_ERR, U64Payload(0).pack(), (eventfd,))
    kick = os.eventfd(1)
    await frontend.tell(Request.SET_VRING_KICK, U64Payload(0).pack(), (kick,))
    os.close(kick)
    await frontend.tell(Request.SET_VRING_ENABLE, VringState(0, 1).pack())
    assert os.eventfd_read(eventfd) == 1
    assert backend.problem
    answer = await frontend.ask(Request.GET_VRING_BASE, VringState(0, 0).pack())
    assert VringState.unpack(answer) == VringState(0, 0)


async def test_a_peer_that_asks_and_never_reads(backend: Backend, frontend: Frontend) -> None:
    question = pack_message(Request.GET_FEATURES) * 100
    with suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(10_000):
            await frontend.send_raw(question)
    await still_serves(backend)


async def test_a_flood_does_not_starve_a_neighbour(tmp_path: Path) -> None:
    async with (
        backend_at(tmp_path / "a") as one,
        backend_at(tmp_path / "b") as two,
        machine_at(one.path) as bad,
        machine_at(two.path) as good,
    ):
        await bad.start()
        await good.start()
        end = asyncio.Event()

        async def flood() -> None:
            messages = pack_message(Request.SET_VRING_BASE, VringState(0, 0).pack()) * 200
            while not end.is_set():
                await bad.frontend.send_raw(messages)

        flooding = asyncio.create_task(flood())
        for number in range(20):
            one.device.set_target(1 << 20)
            await good.inflate(FREE[number])
        end.set()
        await flooding
        assert two.held == set(FREE[:20])


async def test_a_second_connection_is_refused_and_the_first_lives(backend: Backend) -> None:
    async with machine_at(backend.path) as machine:
        await machine.start()
        for _ in range(3):
            async with await Frontend.connect(backend.path) as second:
                await hung_up(second)
        await machine.inflate(FREE[0])
        assert backend.held == {FREE[0]}
        assert backend.server.status()["refused-connections"] == 3


async def test_out_of_descriptors_is_waited_out(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "ACCEPT_PAUSE_SECONDS", 0.01)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_fds()) + 1, hard))
        fillers = []
        try:
            with suppress(OSError):
                while True:
                    fillers.append(os.eventfd(0))
            client.connect(str(backend.path))
            await until(lambda: backend.server._pause is not None)
            assert backend.server.session is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fillers:
                os.close(fd)
        await until(lambda: backend.server.session is not None)
    await still_serves(backend)


async def test_unknown_and_unserved_requests_are_refused_and_survived(frontend: Frontend) -> None:
    await frontend.handshake()
    need_reply = HeaderFlag.VERSION | HeaderFlag.NEED_REPLY
    for code in (0, 45, 1000, Request.SEND_RARP, Request.SET_STATUS, Request.SET_LOG_FD):
        fds = [0] if code == Request.SET_LOG_FD else []
        payload = b"" if code == Request.SET_LOG_FD else bytes(8)
        await frontend.send_raw(pack_message(code, payload, need_reply), fds)
        header, status = await frontend.receive()
        assert header.request == code
        assert len(status) == 8
    assert await frontend.ask_u64(Request.GET_FEATURES)


MESSAGE = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda request, payload: pack_message(request, payload),
        st.integers(0, 50),
        st.binary(max_size=64),
    ),
    st.sampled_from(SERVED).map(lambda each: pack_message(each[0], each[1])),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MESSAGE, max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_garbage_ends_one_connection_and_nothing_else(
    tmp_path: Path, messages: list[bytes], fd_counts: list[int]
) -> None:
    asyncio.run(_send_garbage(tmp_path / "s", messages, fd_counts))


async def _send_garbage(path: Path, messages: list[bytes], fd_counts: list[int]) -> None:
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    with none_left_open():
        async with backend_at(path) as backend:
            fd = os.memfd_create("garbage")
            async with await Frontend.connect(path) as frontend:
                for number, message in enumerate(messages):
                    count = fd_counts[number] if number < len(fd_counts) else 0
                    try:
                        if message:
                            await frontend.send_raw(message, [fd] * count)
                    except (BrokenPipeError, ConnectionResetError):
                        break
                await asyncio.sleep(0)
            os.close(fd)
            await backend.alone()
            assert backend.device.ram_bytes == 0
    assert not failures


async def test_memory_that_is_taken_away_costs_one_connection(
    backend: Backend, tmp_path: Path
) -> None:
    """The file is not sealed and shrinks to nothing under the rings: SIGBUS, if nobody minds."""
    async with backend_at(tmp_path / "t") as other, machine_at(other.path) as neighbour:
        await neighbour.start()
        async with machine_at(backend.path) as machine:
            await machine.start()
            machine.queues[BalloonQueue.INFLATE].add_out(b"1234")
            for item in machine.ram.regions:
                os.ftruncate(item.fd, 0)
            machine.frontend.kick(0)
            await backend.alone()
        await neighbour.inflate(FREE[0])
        assert other.held == {FREE[0]}
