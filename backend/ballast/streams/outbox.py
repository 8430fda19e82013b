"""Bytes on their way to a peer, in shared memory, so that a successor knows which of them went out.

`sendfile` without an offset moves the file's position in the same system call that hands the bytes
to the socket, and the position belongs to the open file, not to the process. So whenever a process
is killed, the position says exactly how much was sent, and whoever has the file sends the rest.

The kernel passes on the file's pages, not copies: bytes that the peer may not have read yet must
not change. So the file is only ever appended to, and its beginning is freed page by page.
"""

from __future__ import annotations

import os

from ballast.memory.reclaim import punch_hole
from ballast_protocol.errors import StateError

KEEP_BYTES = 1 << 20
"""How much of what was sent stays in memory before it is freed."""


class Outbox:
    """A memory file of outgoing bytes, with one position; owns its descriptor.

    Attributes:
        fd: The file; its position is how much was sent.
        end: How far it is filled.
    """

    def __init__(self, fd: int | None = None, end: int | None = None) -> None:
        """Make an empty one, or take over that of a predecessor.

        Args:
            fd: The predecessor's file, whose ownership passes on success.
            end: Up to where its bytes count; all of them if None.

        Raises:
            StateError: Less counts than was sent.
        """
        self.fd = os.memfd_create("ballast-outbox", os.MFD_CLOEXEC) if fd is None else fd
        self.sent = os.lseek(self.fd, 0, os.SEEK_CUR)
        self.end = os.fstat(self.fd).st_size if end is None else end
        self._freed = 0
        if self.sent > self.end:
            raise StateError(f"{self.sent} bytes of {self.end} were sent to the peer")

    @property
    def pending(self) -> int:
        """How many bytes are still to be sent."""
        return self.end - self.sent

    def append(self, data: bytes) -> None:
        """Add bytes; they are not sent yet."""
        self.end += os.pwrite(self.fd, data, self.end)

    def flush(self, sock_fd: int) -> bool:
        """Send as much as the socket takes; return whether that was everything.

        Raises:
            OSError: The peer is gone.
        """
        while self.sent < self.end:
            try:
                self.sent += os.sendfile(sock_fd, self.fd, None, self.end - self.sent)
            except (BlockingIOError, InterruptedError):
                return False
        if self.sent - self._freed >= KEEP_BYTES:
            self._free()
        return True

    def take(self, sent: int) -> None:
        """Count bytes as sent that went out in another way."""
        self.sent = os.lseek(self.fd, self.sent + sent, os.SEEK_SET)

    def waiting(self) -> bytes:
        """Return what is still to be sent."""
        return os.pread(self.fd, self.pending, self.sent)

    def _free(self) -> None:
        """Free the pages of what was sent; the kernel keeps those that the peer has yet to read."""
        page = os.sysconf("SC_PAGESIZE")
        until = self.sent // page * page
        punch_hole(self.fd, 0, until)
        self._freed = until

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
