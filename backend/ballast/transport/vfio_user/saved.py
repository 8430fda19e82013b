"""What a session leaves for a successor, in one record that is replaced as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ballast.balloon.state import DeviceState
from ballast.transport.vfio_user.function import SavedFunction
from ballast.transport.vfio_user.memory import SavedRegion
from ballast_protocol.errors import InternalError, StateError
from ballast_protocol.vfio_user.state import ConnectionState

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

    def connection_state(self) -> ConnectionState | None:
        """Return what was agreed on, for a connection to go on with; None if nothing was.

        Raises:
            StateError: It cannot be used.
        """
        if self.connection is None:
            return None
        try:
            return ConnectionState.from_values(self.connection)
        except InternalError as error:
            raise StateError(str(error)) from error
