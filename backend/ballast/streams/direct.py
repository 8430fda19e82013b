"""Readers that are called while the event loop waits, without a turn of the loop for each.

A turn of asyncio's loop makes a list of what is ready, an entry in its queue for each, and runs
each in a context of its own. That costs about as much as it takes to serve a kick. The few
descriptors of the data path are therefore watched beside the loop's others, and their readers are
called as soon as the wait has ended; everything else stays asyncio's.

Descriptors of both kinds are told apart by the kernel: those of the data path and the loop's own
epoll are in one more epoll.
"""

from __future__ import annotations

import asyncio
import math
import select
import selectors
from collections.abc import Callable
from weakref import WeakKeyDictionary

Reader = Callable[[], None]
Ready = list[tuple[selectors.SelectorKey, int]]


class DirectSelector(selectors.EpollSelector):
    """Waits for descriptors as its base does, and for those whose readers it calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self._readers: dict[int, Reader] = {}
        self._both = select.epoll()
        self._base_fd = self.fileno()
        self._both.register(self._base_fd, select.EPOLLIN)

    def add_reader(self, fd: int, reader: Reader) -> None:
        """Call `reader` whenever a descriptor is readable, or broken.

        Raises:
            OSError: It cannot be waited for.
        """
        if fd not in self._readers:
            self._both.register(fd, select.EPOLLIN)
        self._readers[fd] = reader

    def remove_reader(self, fd: int) -> None:
        """Call nobody any more; to be done before the descriptor is closed."""
        if self._readers.pop(fd, None) is not None:
            self._both.unregister(fd)

    def select(self, timeout: float | None = None) -> Ready:
        """Return what is ready for the loop to handle; readers of ours have been called by then.

        Waits up to `timeout` seconds for either; None is for ever. Where there is no time to wait,
        the loop has something to do that was there before: then it gets the readers too, to be
        called after that.
        """
        ready: Ready = []
        is_free = timeout is None or timeout > 0
        for fd, _ in self.poll(timeout if is_free else 0):
            if fd == self._base_fd:
                ready = super().select(0)
            elif is_free:
                self._call(fd)
            else:
                asyncio.get_running_loop().call_soon(self._call, fd)
        return ready

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Return which descriptors have something; wait up to `timeout` seconds, or for ever."""
        # The kernel must not round down, or a loop whose timer is due in less would spin.
        most = timeout if not timeout else math.ceil(timeout * 1e3) * 1e-3
        return self._both.poll(most, len(self._readers) + 1)

    def _call(self, fd: int) -> None:
        """Call a reader as the loop would: what it raises is reported, and the loop goes on."""
        reader = self._readers.get(fd)
        if reader is None:
            # One that was called before has removed it.
            return
        try:
            reader()
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"a bug of ours in {reader!r}", "exception": error}
            )

    def close(self) -> None:
        """Wait for nothing any more."""
        self._both.close()
        super().close()


_selectors: WeakKeyDictionary[asyncio.AbstractEventLoop, DirectSelector] = WeakKeyDictionary()


def make_loop(selector: DirectSelector) -> asyncio.AbstractEventLoop:
    """Return a loop whose direct readers the selector calls."""
    loop = asyncio.SelectorEventLoop(selector)
    _selectors[loop] = selector
    return loop


def add_reader(loop: asyncio.AbstractEventLoop, fd: int, reader: Reader) -> None:
    """Call `reader` directly whenever a descriptor is readable; in any other loop, as usual.

    Raises:
        OSError: It cannot be waited for.
    """
    (_selectors.get(loop) or loop).add_reader(fd, reader)


def remove_reader(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """Undo `add_reader`, before the descriptor is closed."""
    (_selectors.get(loop) or loop).remove_reader(fd)
