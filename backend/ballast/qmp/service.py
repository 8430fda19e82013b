"""What a QMP socket answers with: the one interface between clients' connections and commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ballast.qmp.commands import Context, execute
from ballast.streams.fds import FdSet
from ballast_protocol.qmp import Command, JsonValue
from ballast_protocol.qmp.json_stream import MAX_DOCUMENT_BYTES, MAX_NESTING, JsonStream


@dataclass(frozen=True)
class Greeting:
    """How a client is greeted.

    Attributes:
        version: QEMU's `VersionInfo` of whoever greets.
        offers_out_of_band: Whether the client may enable out-of-band execution.
        is_qemus: It is QEMU's, so that the client belongs to QEMU's connection and ends with it.
    """

    version: Mapping[str, JsonValue]
    offers_out_of_band: bool = False
    is_qemus: bool = False


class Service(Protocol):
    """Executes what clients ask for."""

    def greeting(self) -> Greeting:
        """Return how a client is greeted that comes now."""

    def stream(self) -> JsonStream:
        """Return what reads a client's bytes, with the bounds that a client has."""

    def takes_descriptors(self, command: Command) -> bool:
        """Return whether a command is one that comes with a file descriptor."""

    async def execute(self, command: Command, fds: FdSet) -> object:
        """Execute a command and return its result; descriptors stay with the caller.

        Raises:
            RefusedError: It was refused.
            BallastError: Anything else that became of it.
        """


class LocalService:
    """The balloon's own commands, and nothing else."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def greeting(self) -> Greeting:
        """Greet as Ballast."""
        return Greeting(self._context.version.to_json())

    def stream(self) -> JsonStream:
        """Return a stream with small bounds: no command of ours needs much."""
        return JsonStream(MAX_DOCUMENT_BYTES, MAX_NESTING)

    def takes_descriptors(self, command: Command) -> bool:
        """None does."""
        return False

    async def execute(self, command: Command, fds: FdSet) -> object:
        """Execute a command of the registry."""
        return await execute(self._context, command)
