"""A vfio-user client's messages, the replies, and the server's own commands, over a socket.

It gives up where QEMU does: on a reply that is unexpected, too long, or has descriptors that were
not asked for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ballast_protocol.errors import InternalError
from ballast_protocol.vfio_user.codes import Command, HeaderFlag
from ballast_protocol.vfio_user.message import DmaAccess, Header, pack_message
from support.driver import GuestRam
from support.link import PATIENCE_SECONDS, FrontendError, read_exactly, ready, send_all

_MAX_TRANSFER = 1 << 20


class ClientError(FrontendError):
    """The server did what QEMU cannot put up with."""


class RefusedCommandError(ClientError):
    """The server answered with an errno, which is the `args[1]` of this."""


@dataclass
class Waiting:
    """A command whose reply is still to come, and what the reply may be."""

    command: int
    room: int
    fds_wanted: int
    answer: asyncio.Future[tuple[Header, bytes, list[int]]]


class VfioLink:
    """The client's end of a connected socket that it owns.

    Attributes:
        socket: That socket.
        ram: What the server's DMA commands reach.
        error: What would have made QEMU give up, if anything did.
        messages: How many commands of each kind were sent.
        lock: QEMU's global lock: the server's DMA commands are served while nobody holds it.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.ram: GuestRam | None = None
        self.error: ClientError | None = None
        self.messages: dict[Command, int] = {}
        self.lock = asyncio.Lock()
        self._next_id = 0
        self._waiting: dict[int, Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader = asyncio.create_task(self._read())

    async def hang_up(self) -> None:
        """Close the socket, without any farewell."""
        for task in (self._reader, *self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError, ClientError):
                await task
        self.socket.close()

    async def post(self, command: Command, payload: bytes) -> None:
        """Send a command that is not to be answered."""
        self._count(command)
        message = pack_message(self._take_id(), command, payload, HeaderFlag.NO_REPLY)
        await send_all(self.socket, message)

    async def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send any bytes, with descriptors at the first of them."""
        await send_all(self.socket, data, fds)

    def _take_id(self) -> int:
        self._next_id = (self._next_id + 1) & 0xFFFF
        return self._next_id

    def _count(self, command: Command) -> None:
        self.messages[command] = self.messages.get(command, 0) + 1

    async def send(
        self,
        command: Command,
        payload: bytes = b"",
        *,
        room: int = 0,
        fds: Sequence[int] = (),
        fds_wanted: int = 0,
    ) -> Waiting:
        """Send a command and go on; `room` is how many bytes of payload the reply may have."""
        if self.error is not None:
            raise self.error
        self._count(command)
        message_id = self._take_id()
        answer = asyncio.get_running_loop().create_future()
        # QEMU receives into the buffer that it has sent from, or a larger one if it says so.
        waiting = Waiting(command, max(room, len(payload)), fds_wanted, answer)
        self._waiting[message_id] = waiting
        await send_all(self.socket, pack_message(message_id, command, payload), fds)
        return waiting

    async def answer(self, waiting: Waiting) -> tuple[bytes, list[int]]:
        """Wait for a reply. Raises RefusedCommandError if it is an errno."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            header, payload, fds = await waiting.answer
        if header.flags & HeaderFlag.ERROR:
            name = Command(waiting.command).name
            raise RefusedCommandError(f"{name}: {os.strerror(header.error)}", header.error)
        return payload, fds

    async def ask(
        self, command: Command, payload: bytes = b"", *, room: int = 0, fds: Sequence[int] = ()
    ) -> bytes:
        """Send a command and return the reply's payload."""
        answer, _ = await self.answer(await self.send(command, payload, room=room, fds=fds))
        return answer

    async def ask_for_fds(
        self, command: Command, payload: bytes, room: int, *, fds_wanted: int
    ) -> tuple[bytes, list[int]]:
        """Send a command whose reply may have descriptors, which are then the caller's."""
        return await self.answer(
            await self.send(command, payload, room=room, fds_wanted=fds_wanted)
        )

    async def _read(self) -> None:
        try:
            while True:
                await self._read_one()
        except (OSError, FrontendError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        failure = error if isinstance(error, ClientError) else ClientError(str(error))
        # A server that hangs up is no fault until somebody misses it.
        if isinstance(error, ClientError):
            self.error = failure
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(failure)
        self._waiting.clear()

    async def _read_one(self) -> None:
        loop = asyncio.get_running_loop()
        await ready(loop.add_reader, loop.remove_reader, self.socket.fileno())
        data, fds, _, _ = socket.recv_fds(self.socket, Header.SIZE, 16)
        if not data:
            raise FrontendError("the server hung up")
        if len(data) < Header.SIZE:
            raise ClientError("short read of header")
        header = Header.unpack(data)
        waiting = self._check(header, fds)
        payload = await read_exactly(self.socket, header.size - Header.SIZE)
        if waiting is not None:
            if not waiting.answer.done():
                waiting.answer.set_result((header, payload, fds))
            return
        task = asyncio.create_task(self._serve(header, payload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _check(self, header: Header, fds: list[int]) -> Waiting | None:
        """Return who waits for this reply; None for a command of the server's."""
        waiting = None
        problem = "bad header size" if header.size < Header.SIZE else ""
        if header.flags & HeaderFlag.REPLY:
            waiting = self._waiting.pop(header.message_id, None)
            if waiting is None:
                problem = f"unexpected reply {header}"
            elif header.command != waiting.command or header.size - Header.SIZE > waiting.room:
                problem = f"{header} is larger than recv buffer, or answers another command"
            elif len(fds) > waiting.fds_wanted:
                problem = "unexpected FDs"
        elif fds:
            problem = "FDs with a command"
        if problem:
            for fd in fds:
                os.close(fd)
            error = ClientError(problem)
            if waiting is not None and not waiting.answer.done():
                waiting.answer.set_exception(error)
            raise error
        return waiting

    async def _serve(self, header: Header, payload: bytes) -> None:
        """Answer a command of the server's, as soon as nobody holds the lock."""
        async with self.lock:
            answer, error = self._access_memory(header, payload)
        flags = HeaderFlag.REPLY | (HeaderFlag.ERROR if error else HeaderFlag.COMMAND)
        message = pack_message(header.message_id, header.command, answer, flags, error)
        with suppress(OSError):  # a server that is gone needs no answer
            await send_all(self.socket, message)

    def _access_memory(self, header: Header, payload: bytes) -> tuple[bytes, int]:
        if header.command not in (Command.DMA_READ, Command.DMA_WRITE):
            return b"", errno.ENOSYS
        if len(payload) < DmaAccess.SIZE:
            return b"", errno.EINVAL
        access, data = DmaAccess.unpack(payload), payload[DmaAccess.SIZE :]
        if self.ram is None or access.count > _MAX_TRANSFER:
            return b"", errno.E2BIG
        try:
            if header.command == Command.DMA_READ:
                return access.pack() + self.ram.read(access.address, access.count), 0
            if access.count > len(data):
                return b"", errno.E2BIG
            self.ram.write(access.address, data[: access.count])
        except InternalError:
            return b"", errno.ENODEV
        return access.pack(), 0
