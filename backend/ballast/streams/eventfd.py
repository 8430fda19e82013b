"""Eventfds: how kicks come in and interrupts go out."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from ballast.streams import direct
from ballast_protocol.errors import MalformedError

_ONE = (1).to_bytes(8, "little")


class KickFd:
    """Watches a descriptor that becomes readable when the driver kicks; owns it."""

    def __init__(self, fd: int, kicked: Callable[[], None]) -> None:
        """Take over `fd` and watch it; on failure it stays with the caller.

        Raises:
            MalformedError: It is not something that can be waited for.
        """
        self._kicked = kicked
        self._loop = asyncio.get_running_loop()
        try:
            os.set_blocking(fd, False)
            direct.add_reader(self._loop, fd, self._readable)
        except OSError as error:
            raise MalformedError(f"a kick descriptor cannot be waited for: {error}") from error
        self._fd = fd

    @property
    def fd(self) -> int:
        """The descriptor, which stays its own."""
        return self._fd

    def _readable(self) -> None:
        """Drain the counter, then report one kick, however many there were."""
        try:
            data = os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # The other end of what should have been an eventfd is gone: stop watching, or the loop
            # would turn for ever.
            direct.remove_reader(self._loop, self._fd)
            return
        self._kicked()

    def close(self) -> None:
        """Stop watching and close."""
        if self._fd >= 0:
            direct.remove_reader(self._loop, self._fd)
            os.close(self._fd)
            self._fd = -1


class CallFd:
    """A descriptor that is written to notify the driver; owns it."""

    def __init__(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            os.set_blocking(fd, False)
        self._fd = fd

    @property
    def fd(self) -> int:
        """The descriptor, which stays its own."""
        return self._fd

    def signal(self) -> None:
        """Notify. A full counter means that a notification is pending already."""
        try:  # noqa: SIM105  # `suppress` costs more than the rest
            os.write(self._fd, _ONE)
        except OSError:
            pass

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
