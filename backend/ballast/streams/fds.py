"""File descriptors that arrived over a socket, with exactly one owner at any time."""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
from collections.abc import Iterable
from types import TracebackType

from ballast_protocol.errors import InternalError

_F_DUPFD_QUERY = 1027
"""Linux 6.10; not in Python's `fcntl` yet."""

_KCMP_NUMBERS = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}
_KCMP_FILE = 0


def is_same_description(first: int, second: int) -> bool:
    """Return whether two descriptors are duplicates of each other, not merely of the same file.

    Raises:
        OSError: The kernel does not tell, or one of them is not open.
    """
    try:
        return fcntl.fcntl(first, _F_DUPFD_QUERY, second) == 1
    except OSError as error:
        number = _KCMP_NUMBERS.get(platform.machine())
        if number is None:
            raise
        pid, libc = os.getpid(), ctypes.CDLL(None, use_errno=True)
        answer = int(libc.syscall(number, pid, pid, _KCMP_FILE, first, second))
        if answer < 0:
            raise OSError(ctypes.get_errno(), "kcmp failed") from error
        return answer == 0


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

    def take_all(self) -> list[int]:
        """Hand all descriptors over to the caller, who must close them."""
        taken, self._fds = self._fds, []
        return taken

    def close(self) -> None:
        """Close what nobody took."""
        while self._fds:
            os.close(self._fds.pop())
