"""What the rest of the daemon may expect of a transport."""

from __future__ import annotations

from typing import Protocol

NO_SHARED_MEMORY = (
    "QEMU shares no guest memory with us, so no page can be given back: start it with "
    "-object memory-backend-memfd,id=mem,size=SIZE,share=on and -machine memory-backend=mem"
)
"""What to tell the operator when the guest's memory is private to QEMU, or has no file at all."""


class Transport(Protocol):
    """Serves one balloon device to one VMM at a time."""

    async def start(self) -> None:
        """Listen for the VMM.

        Raises:
            OperatorError: The socket cannot be used.
        """

    async def close(self) -> None:
        """Let go of the VMM, its memory and the socket."""

    def notify_config(self) -> None:
        """Have the guest read the config space again, as soon as that is safe."""

    def request_statistics(self) -> bool:
        """Ask the guest for new statistics; return whether it was possible to ask."""

    def refresh(self) -> None:
        """Take what the guest has said since we last looked, where nobody tells us."""

    def status(self) -> dict[str, object]:
        """Return what operators may want to know, ready for JSON."""
