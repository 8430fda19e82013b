"""How the balloon's configuration reaches a guest that may have mapped it, and back."""

from __future__ import annotations

import asyncio

from ballast.balloon.device import BalloonDevice
from ballast.transport.kept import KeptFds
from ballast.transport.vfio_user.page import ConfigPage
from ballast.virtio_pci.layout import Layout
from ballast_protocol.errors import InternalError

WATCH_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Pauses between looks at the page after a queue was used; the last one repeats."""

NEAR_PAGES = 1024
"""So near to its target, a guest may be giving its last buffer."""

_FAR = WATCH_SECONDS.index(0.05)
"""Which pause is the first for a guest that has more to give."""

_PAGE = "page"


class ConfigSharing:
    """Keeps a mapped configuration page and the device in step; does nothing if none is mapped."""

    def __init__(
        self, device: BalloonDevice, layout: Layout, kept: KeptFds, *, is_resumed: bool = False
    ) -> None:
        """Make the page if there has to be one, or take over that of a predecessor.

        Args:
            device: The device.
            layout: What may be mapped.
            kept: Where the page's file is kept.
            is_resumed: There was a predecessor.

        Raises:
            StateError: Its page is missing.
        """
        self._device = device
        self._window = layout.mapped
        self._page: ConfigPage | None = None
        if layout.mapped is not None:
            self._page = ConfigPage(layout, kept.take(_PAGE) if is_resumed else None)
            kept.put(_PAGE, self._page.fd)
        self._timer: asyncio.TimerHandle | None = None
        self._looks = 0
        self._loop = asyncio.get_running_loop()

    @property
    def page(self) -> ConfigPage:
        """The page that the client maps.

        Raises:
            InternalError: There is none.
        """
        if self._page is None:
            raise InternalError("no part of this function can be mapped")
        return self._page

    def show(self) -> None:
        """Let the guest see the fields that the device writes."""
        if self._page is not None:
            self._page.show(self._device.config)

    def take(self) -> None:
        """Take what the guest has written."""
        if self._page is not None and self._device.is_running:
            self._device.write_actual(self._page.actual)

    def written(self, region: int, offset: int, data: bytes) -> None:
        """Keep what the guest has written in a message rather than to the mapped page.

        A guest without MSI-X does: after an interrupt QEMU takes the page away for a while.
        """
        window = self._window
        if self._page is not None and window is not None and window.holds(region, offset):
            self._page.store(offset - window.offset, data)

    def driver_begins(self) -> None:
        """Before the device starts: take what a driver writes before it is ready."""
        if self._page is not None:
            self._device.write_poison(self._page.poison_val)

    def driver_ends(self) -> None:
        """After a reset: the next driver has written nothing yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._page is not None:
            self._page.clear_driver_fields()

    def watch(self) -> None:
        """Look at the page soon: the driver writes `actual` after it has seen a used buffer.

        While buffers come, each of them is a look; only the last ones have to be waited for.
        """
        if self._page is None:
            return
        first = 0 if self._page.distance <= NEAR_PAGES else _FAR
        if self._timer is None or self._looks > first:
            self._set_timer(first)

    def _look(self) -> None:
        self.take()
        self._set_timer(min(self._looks + 1, len(WATCH_SECONDS) - 1))

    def _set_timer(self, looks: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks = looks
        self._timer = self._loop.call_later(WATCH_SECONDS[looks], self._look)

    def close(self) -> None:
        """Stop looking and let go of the page."""
        if self._timer is not None:
            self._timer.cancel()
        if self._page is not None:
            self._page.close()
            self._page = None
