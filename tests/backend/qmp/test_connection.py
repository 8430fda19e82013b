from __future__ import annotations

import asyncio
import socket
import tracemalloc
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError

from ballast.qmp.connection import ClientLimits
from support.backend import until
from support.balloon_control import MIB, FakeBalloonControl
from support.qmp_peer import deaf_peer, qmp_client, raw_peer, serving


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


async def send_until_dropped(deaf: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(20):
        while True:
            await asyncio.get_running_loop().sock_sendall(deaf, data)


async def test_refusals_of_the_vm_are_told_with_their_hint(path: Path) -> None:
    vm = FakeBalloonControl(smallest_target_bytes=MIB)
    async with serving(path, vm), qmp_client(path) as client:
        with pytest.raises(ExecuteError) as caught:
            await client.execute("balloon", {"value": 1})
        assert str(caught.value) == "below the floor (lower the floor first)"
        with pytest.raises(ExecuteError) as caught:
            await client.execute("ballast-stats", {"fresh": True})
        assert caught.value.error_class == "TimedOut"


async def test_events_wait_for_command_mode(path: Path) -> None:
    async with serving(path) as server, raw_peer(path) as peer:
        assert "QMP" in await peer.receive()
        server.emit("EARLY", {})
        assert await peer.ask(b'{"execute": "qmp_capabilities"}') == {"return": {}}
        server.emit("LATE", {})
        assert (await peer.receive())["event"] == "LATE"


async def test_requests_in_one_write_are_answered_in_order(path: Path) -> None:
    async with serving(path), raw_peer(path) as peer:
        peer.send(b'{"execute": "qmp_capabilities", "id": 0}{"execute": "query-name", "id": 1}[]')
        peer.send(b'{"execute": "nope", "id": 2}')
        peer.writer.write_eof()
        replies = [await peer.receive() for _ in range(5)]
        assert [reply.get("id") for reply in replies] == [None, 0, 1, None, 2]
        assert await peer.receive() is None


async def test_a_client_that_has_said_its_last_word_still_gets_all_replies(path: Path) -> None:
    count = 5000
    limits = ClientLimits(max_unsent_bytes=64 * MIB)
    async with serving(path, limits=limits) as server, raw_peer(path) as peer:
        await peer.negotiate()
        [connection] = server._clients
        peer.send(b'{"execute": "query-commands"}' * count)
        peer.writer.write_eof()
        while connection._counters.commands < count:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        for _ in range(count):
            assert len((await peer.receive())["return"]) > 10
        assert await peer.receive() is None


async def test_a_slow_command_delays_its_client_only(path: Path) -> None:
    vm = FakeBalloonControl(report={"free-bytes": 1}, gate=asyncio.Event())
    async with serving(path, vm), raw_peer(path) as slow, raw_peer(path) as other:
        await slow.negotiate()
        await other.negotiate()
        slow.send(b'{"execute": "ballast-report", "id": 1}{"execute": "query-name", "id": 2}')
        for _ in range(5):
            assert "return" in await other.ask(b'{"execute": "query-name"}')
        assert vm.gate is not None
        vm.gate.set()
        assert [(await slow.receive())["id"] for _ in range(2)] == [1, 2]


async def test_a_bug_is_logged_and_the_client_goes_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vm = FakeBalloonControl(extra_status={"bug": object()})
    async with serving(path, vm), qmp_client(path) as client:
        with pytest.raises(ExecuteError, match="internal error"):
            await client.execute("ballast-status")
        assert await client.execute("query-name") == {"name": "vm1"}
    assert "ballast-status failed" in caplog.text
    assert "Traceback" in caplog.text


async def test_garbage_is_its_senders_problem(path: Path) -> None:
    async with serving(path) as server, raw_peer(path) as bad, qmp_client(path) as good:
        await bad.negotiate()
        bad.send(bytes(range(256)) * 64)
        for _ in range(10):
            assert await good.execute("query-name") == {"name": "vm1"}
        bad.send(b'\xff{"execute": "query-name", "id": "still here"}')
        while "id" not in (reply := await bad.receive()):
            assert reply["error"]["class"] == "GenericError"
        assert reply == {"return": {"name": "vm1"}, "id": "still here"}
        assert server.status()["malformed"] != 0


async def test_brackets_without_an_end(path: Path) -> None:
    async with serving(path) as server, raw_peer(path) as bad, qmp_client(path) as good:
        await bad.negotiate()
        for _ in range(1000):
            bad.send(b"[" * 1000)
            await bad.writer.drain()
        assert await good.execute("query-name") == {"name": "vm1"}
        assert (await bad.receive())["error"]["desc"] == "JSON nesting depth limit exceeded"
        bad.send(b'\xff{"execute": "query-name"}')
        while "return" not in (reply := await bad.receive()):
            assert "error" in reply
        assert reply == {"return": {"name": "vm1"}}
        assert server.status()["clients"] == 2


async def test_a_hundred_megabytes_without_an_end(path: Path) -> None:
    async with serving(path), raw_peer(path) as bad, qmp_client(path) as good:
        await bad.negotiate()
        chunk = b"x" * MIB
        tracemalloc.start()
        try:
            bad.send(b'{"execute": "')
            for _ in range(100):
                bad.send(chunk)
                await bad.writer.drain()
                assert await good.execute("query-name") == {"name": "vm1"}
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * MIB
        assert (await bad.receive())["error"]["desc"] == "JSON token size limit exceeded"
        assert await bad.ask(b'"}{"execute": "query-name"}') == {"return": {"name": "vm1"}}


async def test_a_client_that_reads_no_events_is_dropped(path: Path) -> None:
    limits = ClientLimits(max_unsent_bytes=64 << 10)
    async with (
        serving(path, limits=limits) as server,
        raw_peer(path) as other,
        deaf_peer(path),
    ):
        await other.negotiate()
        most_unsent = 0
        for number in range(2000):
            server.emit("FLOOD", {"number": number, "text": "x" * 1000})
            for connection in server._clients:
                unsent = connection._stream.unsent_bytes
                most_unsent = max(most_unsent, unsent)
            assert (await other.receive())["data"]["number"] == number
        assert server.status() == {
            **{"clients": 1, "connections": 2, "commands": 0},
            **{"dropped": 1, "rejected": 0, "malformed": 0},
        }
        assert 64 << 10 < most_unsent < 66 << 10
        assert "return" in await other.ask(b'{"execute": "query-name"}')


async def test_a_client_that_reads_no_replies_is_dropped(path: Path) -> None:
    limits = ClientLimits(max_unsent_bytes=64 << 10, patience_seconds=0.05)
    async with (
        serving(path, limits=limits),
        raw_peer(path) as other,
        deaf_peer(path) as deaf,
    ):
        await other.negotiate()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await send_until_dropped(deaf, b'{"execute": "query-commands"}' * 100)
        status = (await other.ask(b'{"execute": "ballast-status"}'))["return"]["qmp"]
        assert (status["clients"], status["dropped"]) == (1, 1)
        assert "return" in await other.ask(b'{"execute": "query-name"}')


async def test_a_large_reply_is_no_reason_to_drop_a_client_that_gets_events(path: Path) -> None:
    limits = ClientLimits(max_unsent_bytes=64 << 10)
    vm = FakeBalloonControl(ledger=[(number, 1) for number in range(100_000)])
    async with serving(path, vm, limits=limits) as server, raw_peer(path) as peer:
        await peer.negotiate()
        peer.send(b'{"execute": "ballast-ledger"}')
        [connection] = server._clients
        await until(lambda: connection._stream.unsent_bytes > 128 << 10)
        for number in range(10):
            server.emit("EVENT", {"number": number})
        assert len((await peer.receive())["return"]["runs"]) == 100_000
        assert [(await peer.receive())["data"]["number"] for _ in range(10)] == list(range(10))
        assert server.status()["dropped"] == 0
