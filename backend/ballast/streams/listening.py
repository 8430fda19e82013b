"""Sockets that a successor goes on listening with, and whether who connected is still there."""

from __future__ import annotations

import asyncio
import select
import socket
from pathlib import Path

from ballast.streams.fdstore import VmStore
from ballast.streams.unix import listen


def kept_listener(store: VmStore, what: str, path: Path) -> socket.socket:
    """Return the socket that a predecessor listened with, or a new one; either way it is stored.

    Raises:
        OperatorError: The path cannot be listened at.
    """
    fd = store.take(what)
    sock = None if fd is None else socket.socket(fileno=fd)
    if sock is not None and not path.exists():
        # Somebody has tidied up. Nobody can find it any more.
        sock.close()
        sock = None
    if sock is None:
        sock = listen(path)
    sock.setblocking(False)
    store.put(what, sock.fileno())
    return sock


def has_hung_up(writer: asyncio.StreamWriter | None) -> bool:
    """Tell whether the other end has gone, though not all that it said may have been read."""
    if writer is None:
        return True
    poller = select.poll()
    poller.register(writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(poller.poll(0))
