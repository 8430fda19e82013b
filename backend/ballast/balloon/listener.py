"""Who is told what happens in a balloon device."""

from __future__ import annotations

from typing import Protocol


class DeviceListener(Protocol):
    """Who wants to know what happens in the device."""

    def config_changed(self) -> None:
        """The guest should be told to read the config space again."""

    def actual_changed(self) -> None:
        """The guest says that its balloon has another size."""

    def statistics_received(self) -> None:
        """The guest sent new statistics."""

    def driver_changed(self) -> None:
        """A driver has begun, gone on or stopped, or the VMM has gone.

        One that has begun has not read its target yet.
        """
