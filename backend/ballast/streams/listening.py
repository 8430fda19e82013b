"""Listening sockets that a successor goes on with: who connects meanwhile is not lost."""

from __future__ import annotations

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
