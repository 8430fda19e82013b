from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ballast_images.shell import CommandFailedError, GuestRestartedError, GuestShell
from ballast_protocol.errors import MalformedError, OperatorError, TimedOutError


class FakeGuest:
    """A guest's shell service, answering as a test says, on QEMU's end of the socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> dict[str, Any]:
        line = b"\n"
        while line == b"\n":
            line = await self._reader.readline()
        message: dict[str, Any] = json.loads(line)
        return message

    def send(self, **message: Any) -> None:
        self.send_raw(json.dumps(message).encode() + b"\n")

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    def boot(self, name: str) -> None:
        self.send_raw(b"\n")
        self.send(ready={"session": f"session-{name}", "boot_id": name, "release": "6.12.0"})

    def answer(self, request: dict[str, Any], **fields: Any) -> None:
        self.send(
            id=request["id"],
            **{"status": 0, "stdout": "", "stderr": "", "timed_out": False, **fields},
        )

    def hang_up(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[GuestShell, FakeGuest]]:
    accepted: asyncio.Future[FakeGuest] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(FakeGuest(reader, writer))

    server = await asyncio.start_unix_server(accept, path)
    async with server, GuestShell.connected(path) as shell:
        guest = await accepted
        yield shell, guest
        guest.hang_up()


async def test_it_asks_who_is_there(socket_dir: Path) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        assert await guest.receive() == {"hello": True}
        assert shell.ready is None
        guest.boot("one")
        ready = await shell.wait_ready()
        assert (ready.boot_id, ready.release) == ("one", "6.12.0")


async def test_a_command_and_its_result(socket_dir: Path) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        guest.boot("one")
        await guest.receive()
        running = asyncio.create_task(shell.run("free", stdin="x", timeout_s=5))
        request = await guest.receive()
        assert request["argv"] == ["sh", "-c", "free"]
        assert (request["stdin"], request["timeout"]) == ("x", 5)
        guest.answer(request, stdout='{"a": 1}', stderr="e")
        result = await running
        assert result.json() == {"a": 1}
        assert (result.status, result.stderr) == (0, "e")


async def test_answers_come_in_any_order(socket_dir: Path) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        guest.boot("one")
        await guest.receive()
        running = [asyncio.create_task(shell.run([name])) for name in ("a", "b", "c")]
        requests = [await guest.receive() for _ in running]
        for request in reversed(requests):
            guest.answer(request, stdout=request["argv"][0])
        assert [(await task).stdout for task in running] == ["a", "b", "c"]


async def test_a_status_is_an_error_unless_wanted(socket_dir: Path) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        guest.boot("one")
        await guest.receive()
        for check in (True, False):
            running = asyncio.create_task(shell.run(["false", "x"], check=check))
            guest.answer(await guest.receive(), status=7, stderr="why\n")
            if check:
                with pytest.raises(CommandFailedError, match="`false x` ended with status 7: why"):
                    await running
            else:
                assert (await running).status == 7


async def test_a_command_that_was_killed_timed_out(socket_dir: Path) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        guest.boot("one")
        await guest.receive()
        running = asyncio.create_task(shell.run("sleep 9", timeout_s=3))
        guest.answer(await guest.receive(), status=-9, timed_out=True)
        with pytest.raises(TimedOutError, match="`sleep 9` took longer than 3 s"):
            await running


async def test_a_guest_that_never_comes_times_out(socket_dir: Path) -> None:
    async with connected(socket_dir / "s") as (shell, _):
        with pytest.raises(TimedOutError, match="not ready within 0 s"):
            await shell.wait_ready(timeout_s=0)


async def test_a_reboot_fails_what_was_running_and_nothing_after_it(socket_dir: Path) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        guest.boot("one")
        await guest.receive()
        lost = asyncio.create_task(shell.run("sleep 9"))
        await guest.receive()
        rebooting = asyncio.create_task(shell.reboot())
        assert (await guest.receive())["argv"] == ["reboot", "-f"]
        # The old guest was cut short in the middle of a line.
        guest.send_raw(b'{"id": 1, "stat')
        guest.boot("two")
        assert (await rebooting).boot_id == "two"
        with pytest.raises(GuestRestartedError):
            await lost
        running = asyncio.create_task(shell.run("true"))
        guest.answer(await guest.receive())
        assert (await running).status == 0


async def test_the_same_boot_saying_hello_again_changes_nothing(socket_dir: Path) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        guest.boot("one")
        await guest.receive()
        running = asyncio.create_task(shell.run("true"))
        request = await guest.receive()
        guest.boot("one")
        guest.answer(request, stdout="still here")
        assert (await running).stdout == "still here"


Call = Callable[[GuestShell], Awaitable[Any]]


@pytest.mark.parametrize("call", [lambda shell: shell.run("x"), lambda shell: shell.wait_ready()])
async def test_the_end_of_qemu_ends_the_wait(socket_dir: Path, call: Call) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        guest.hang_up()
        with pytest.raises(OperatorError, match="QEMU closed the connection"):
            await call(shell)


async def test_a_running_command_learns_of_the_end_of_qemu(socket_dir: Path) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        guest.boot("one")
        await guest.receive()
        running = asyncio.create_task(shell.run("x"))
        await guest.receive()
        guest.hang_up()
        with pytest.raises(OperatorError, match="QEMU closed the connection"):
            await running


@pytest.mark.parametrize("ready", [1, {}, {"session": "a"}])
async def test_a_guest_that_announces_nonsense_ends_the_connection(
    socket_dir: Path, ready: object
) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        guest.send(ready=ready)
        with pytest.raises(OperatorError, match="announced itself") as raised:
            await shell.wait_ready()
        assert not isinstance(raised.value, MalformedError)


@pytest.mark.parametrize("noise", [b"\xff\n", b"[]\n", b"3\n", b'{"id": 99}\n', b"{}\n"])
async def test_noise_is_passed_over(socket_dir: Path, noise: bytes) -> None:
    async with connected(socket_dir / "s") as (shell, guest):
        guest.send_raw(noise)
        guest.boot("one")
        assert (await shell.wait_ready()).boot_id == "one"
