"""The socket file that operators connect to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from ballast_protocol.errors import OperatorError

log = logging.getLogger(__name__)

ACCEPT_PAUSE_SECONDS = 1.0
"""How long clients wait outside when there is no descriptor left for them."""


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Linux gives the socket file the mode of the socket, less the umask: so it is never open
        # to others, not even between bind and a chmod.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        listener.listen()
    except OSError as error:
        listener.close()
        raise OperatorError(
            f"cannot serve QMP at {path}: {error.strerror or error}",
            hint="another process may be serving this VM, or the directory may be missing",
        ) from error
    return listener


class Listener:
    """A socket file that is there from here to `close`.

    `connected` is called with every client's socket, which belongs to it from then on.
    """

    def __init__(
        self,
        path: Path,
        connected: Callable[[socket.socket], None],
        listener: socket.socket | None = None,
    ) -> None:
        """Make the file and listen, or take over a `listener` that does so already.

        Raises:
            OperatorError: It cannot be made at this path.
        """
        self._path = path
        self._connected = connected
        self._loop = asyncio.get_running_loop()
        self._socket = listener or _listen(path)
        self._socket.setblocking(False)
        self._inode = path.stat().st_ino
        self._pause: asyncio.TimerHandle | None = None
        self._watch()

    def _watch(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("a QMP client could not be accepted: %s", error)
            self._loop.remove_reader(self._socket)
            self._pause = self._loop.call_later(ACCEPT_PAUSE_SECONDS, self._watch)
            return
        self._connected(client)

    def close(self) -> None:
        """Stop listening, and remove the socket file."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            # Not a file that somebody else has put there since.
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
