"""What a session leaves for a successor, in one record that is replaced as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ballast.balloon.state import DeviceState
from ballast.transport.vfio_user.function import SavedFunction
from ballast.transport.vfio_user.memory import SavedRegion

RECORD = "vfio-user"


@dataclass(frozen=True, slots=True)
class SavedSession:
    """A session between two messages.

    Attributes:
        connection: What was agreed on (`ConnectionState.to_values`); None before the first message.
        regions: The guest's memory.
        maps_without_file: How much of it cannot be given back, in maps.
        function: The PCI function.
        device: What is behind it.
        page_reply_end: Where in the outbox the last reply ends that the page's file goes along
            with; 0 if there was none.
    """

    connection: dict[str, Any] | None
    regions: tuple[SavedRegion, ...]
    maps_without_file: int
    function: SavedFunction
    device: DeviceState
    page_reply_end: int = 0
