"""Tells a service manager how far we are, in the way of `sd_notify(3)`."""

from __future__ import annotations

import contextlib
import os
import socket


def notify_service_manager(message: str) -> None:
    """Send a message to `$NOTIFY_SOCKET`, if there is one, without waiting."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
    ):
        sock.sendto(message.encode(), address.replace("@", "\0", 1))
