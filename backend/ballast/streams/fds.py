"""File descriptors that arrived over a socket, with exactly one owner at any time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType

from ballast_protocol.errors import InternalError


class FdSet:
    """Owns received descriptors until somebody takes them; the rest is closed on leaving.

    Used as a context manager around the handling of one message, so that no path, errors included,
    leaks a descriptor.
    """

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds: list[int] = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def __enter__(self) -> FdSet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def extend(self, fds: Iterable[int]) -> None:
        """Own more descriptors, after those that are owned already."""
        self._fds.extend(fds)

    def peek(self) -> int:
        """Return the first descriptor, which stays owned by the set.

        Raises:
            InternalError: There is none.
        """
        if not self._fds:
            raise InternalError("no file descriptor to look at")
        return self._fds[0]

    def steal(self) -> int:
        """Hand the first descriptor over to the caller, who must close it.

        Raises:
            InternalError: There is none.
        """
        if not self._fds:
            raise InternalError("no file descriptor to take")
        return self._fds.pop(0)

    def close(self) -> None:
        """Close what nobody took."""
        while self._fds:
            os.close(self._fds.pop())
