"""Which ranges of the client's memory are mapped, and commands of our own that read or write them.

DMA_READ and DMA_WRITE go from server to client. Two layouts of them are about: the specification
and QEMU 11.1 have a 64-bit count, QEMU 10.1 and 10.2 have a 32-bit one, so the data begins four
bytes earlier. Nothing in VERSION tells them apart, a reply to DMA_READ can: the older layout
has data where the count's upper half would be, and always four zeros at its end. A write in the
wrong layout would put wrong bytes into the client's memory, so read first: `DmaCommands.layout`.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum

from ballast_protocol.errors import AddressError, InternalError, MalformedError
from ballast_protocol.vfio_user.codes import Command, DmaMapFlag, HeaderFlag, name_of
from ballast_protocol.vfio_user.events import (
    Completion,
    DmaFailed,
    DmaReadDone,
    DmaWriteDone,
    RefusalError,
)
from ballast_protocol.vfio_user.message import DmaAccess, Header, pack_message

MAX_COMMANDS = 32
"""Commands of ours that may wait for their replies at the same time."""

_SHORT_HEAD = 12
"""Bytes before the data in the older layout, and in a DMA_WRITE reply as the specification's table
has it."""


_PADDING = DmaAccess.SIZE - _SHORT_HEAD


@dataclass(frozen=True, slots=True, eq=False)
class DmaRange:
    """A range that is mapped, and what the device may do with it."""

    address: int
    size: int
    flags: DmaMapFlag

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size


class DmaMaps:
    """The ranges that are mapped now. None overlaps another."""

    def __init__(self, limit: int) -> None:
        """Start empty.

        Args:
            limit: How many ranges there may be.
        """
        self.limit = limit
        self._starts: list[int] = []
        self._ranges: dict[int, DmaRange] = {}

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def all(self) -> tuple[tuple[int, int, int], ...]:
        """Address, size and rights of each range, by address."""
        ranges = (self._ranges[start] for start in self._starts)
        return tuple((each.address, each.size, int(each.flags)) for each in ranges)

    def _range(self, position: int) -> DmaRange | None:
        return self._ranges[self._starts[position]] if 0 <= position < len(self) else None

    def add(self, address: int, size: int, flags: DmaMapFlag) -> DmaRange:
        """Map one more range.

        Raises:
            RefusalError: It overlaps one that is mapped, or there are too many.
        """
        if len(self) >= self.limit:
            raise RefusalError(errno.ENOSPC, f"{self.limit} ranges are mapped already")
        added = DmaRange(address, size, flags)
        position = bisect_right(self._starts, address)
        before, after = self._range(position - 1), self._range(position)
        for other in (before, after):
            if other is not None and other.address < added.end and address < other.end:
                raise RefusalError(
                    errno.EEXIST,
                    f"{address:#x}+{size:#x} overlaps {other.address:#x}+{other.size:#x}",
                )
        self._starts.insert(position, address)
        self._ranges[address] = added
        return added

    def remove(self, address: int, size: int) -> None:
        """Forget a range.

        Raises:
            RefusalError: Exactly this range is not mapped.
        """
        found = self._ranges.get(address)
        if found is None or found.size != size:
            raise RefusalError(errno.ENOENT, f"no range {address:#x}+{size:#x} is mapped")
        self.discard(found)

    def discard(self, mapped: DmaRange) -> None:
        """Forget what `add` returned, if it is still there; not a later one at the same address."""
        if self._ranges.get(mapped.address) is mapped:
            del self._ranges[mapped.address]
            del self._starts[bisect_right(self._starts, mapped.address) - 1]

    def clear(self) -> None:
        """Forget all of them."""
        self._starts.clear()
        self._ranges.clear()

    def check(self, address: int, count: int, right: DmaMapFlag) -> None:
        """Pass an access that lies inside ranges which allow it, side by side if there are several.

        Raises:
            AddressError: It does not.
        """
        position, reached = bisect_right(self._starts, address) - 1, address
        while reached < address + count:
            found = self._range(position)
            if found is None or not found.address <= reached < found.end:
                raise AddressError(f"{reached:#x} is not mapped, of {address:#x}+{count:#x}")
            if not found.flags & right:
                raise AddressError(f"{reached:#x} is not mapped to {right.name}")
            position, reached = position + 1, found.end


class DmaLayout(Enum):
    """How the client understands DMA_READ and DMA_WRITE."""

    UNKNOWN = "no reply has told yet"
    SPECIFIED = "as specified, with a 64-bit count"
    SHORT_COUNT = "with a 32-bit count, as QEMU 10.1 and 10.2 do"


@dataclass(frozen=True, slots=True)
class OutgoingCommand:
    """A command of ours on its way out.

    Attributes:
        command_id: What its `Completion` will be known by.
        data: The whole message.
    """

    command_id: int
    data: bytes


class DmaCommands:
    """Makes our commands and matches the replies.

    Attributes:
        layout: How the client understands them, as far as replies have told. A DMA_READ whose data
            does not end in four zeros always tells.
        next_id: The next command's id, unless one with it still waits.
    """

    def __init__(
        self,
        layout: DmaLayout = DmaLayout.UNKNOWN,
        next_id: int = 0,
        waiting: dict[int, tuple[Command, DmaAccess]] | None = None,
    ) -> None:
        self.layout = layout
        self.next_id = next_id
        self._waiting = waiting or {}

    @property
    def waiting(self) -> tuple[tuple[int, int, int, int], ...]:
        """Id, code, address and count of each command that has no reply yet."""
        return tuple(
            (command_id, int(command), access.address, access.count)
            for command_id, (command, access) in self._waiting.items()
        )

    def read(self, address: int, count: int) -> OutgoingCommand:
        """Return a DMA_READ.

        Raises:
            InternalError: Too many commands wait for replies.
        """
        return self._command(Command.DMA_READ, DmaAccess(address, count), b"")

    def write(self, address: int, data: bytes) -> OutgoingCommand:
        """Return a DMA_WRITE.

        Raises:
            InternalError: Too many commands wait for replies, or the client is known to have the
                layout in which this would write wrong bytes.
        """
        if self.layout is DmaLayout.SHORT_COUNT:
            raise InternalError("this client would misread DMA_WRITE")
        return self._command(Command.DMA_WRITE, DmaAccess(address, len(data)), data)

    def _command(self, command: Command, access: DmaAccess, data: bytes) -> OutgoingCommand:
        if len(self._waiting) >= MAX_COMMANDS:
            raise InternalError(f"{MAX_COMMANDS} commands wait for replies already")
        while self.next_id in self._waiting:
            self.next_id = (self.next_id + 1) & 0xFFFF
        command_id, self.next_id = self.next_id, (self.next_id + 1) & 0xFFFF
        self._waiting[command_id] = (command, access)
        return OutgoingCommand(command_id, pack_message(command_id, command, access.pack() + data))

    def check_reply(self, header: Header) -> None:
        """Pass a reply's header if a command waits for one like it.

        Raises:
            MalformedError: None does, or it is longer than any such reply.
        """
        waiting = self._waiting.get(header.message_id)
        if waiting is None or waiting[0] != header.command:
            raise MalformedError(f"a reply that nothing waits for, with id {header.message_id}")
        command, access = waiting
        most = DmaAccess.SIZE + (access.count if command is Command.DMA_READ else 0)
        if header.size - Header.SIZE > most:
            raise MalformedError(f"a reply of {header.size - Header.SIZE} bytes, not up to {most}")

    def finish(self, header: Header, payload: bytes) -> Completion:
        """Take in a reply that `check_reply` has passed.

        Raises:
            MalformedError: It speaks of another part of memory, or has less data than it says.
        """
        command, access = self._waiting.pop(header.message_id)
        if header.flags & HeaderFlag.ERROR:
            return DmaFailed(header.message_id, header.error)
        if command is Command.DMA_READ:
            data = self._read_data(access, payload)
            return DmaReadDone(header.message_id, access.address, data)
        _check_write_reply(access, payload)
        return DmaWriteDone(header.message_id, access.address, access.count)

    def _read_data(self, access: DmaAccess, payload: bytes) -> bytes:
        size = DmaAccess.SIZE + access.count
        if len(payload) != size or payload[:_SHORT_HEAD] != access.pack()[:_SHORT_HEAD]:
            raise MalformedError(f"{name_of(Command.DMA_READ)} of {access} was answered otherwise")
        self._learn(payload)
        start = _SHORT_HEAD if self.layout is DmaLayout.SHORT_COUNT else DmaAccess.SIZE
        return payload[start : start + access.count]

    def _learn(self, payload: bytes) -> None:
        """Note what this reply to DMA_READ says of the layout, if anything.

        Raises:
            MalformedError: It is in no known layout, or not in that of an earlier reply.
        """
        upper_half, end = payload[_SHORT_HEAD : DmaAccess.SIZE], payload[-_PADDING:]
        seen = {DmaLayout.SHORT_COUNT: any(upper_half), DmaLayout.SPECIFIED: any(end)}
        found = [layout for layout, said in seen.items() if said]
        if not found:
            return
        if len(found) > 1 or self.layout not in (DmaLayout.UNKNOWN, found[0]):
            raise MalformedError("a reply to DMA_READ in no layout, or not that of earlier ones")
        self.layout = found[0]


def _check_write_reply(access: DmaAccess, payload: bytes) -> None:
    """Pass the three forms that are about: specified in words, in the table, and QEMU 10's."""
    whole = access.pack()
    if payload not in (whole, whole[:_SHORT_HEAD], b""):
        raise MalformedError(f"{name_of(Command.DMA_WRITE)} of {access} was answered otherwise")
