"""What a server has to remember of a connection so that a successor can go on with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ballast_protocol.errors import InternalError
from ballast_protocol.vfio_user.capabilities import EffectiveCapabilities
from ballast_protocol.vfio_user.codes import Command, DmaMapFlag
from ballast_protocol.vfio_user.dma import DmaCommands, DmaLayout, DmaMaps
from ballast_protocol.vfio_user.message import DmaAccess


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """A connection between two messages, with no request unanswered.

    Attributes:
        client: What the client can take.
        limits: What the client may send.
        maps: Address, size and rights of each range that is mapped.
        layout: How the client understands our commands, as far as its replies have told.
        next_command_id: Where to look for the id of our next command.
        commands: Id, code, address and count of each command of ours that has no reply yet.
    """

    client: EffectiveCapabilities
    limits: EffectiveCapabilities
    maps: tuple[tuple[int, int, int], ...] = ()
    layout: DmaLayout = DmaLayout.UNKNOWN
    next_command_id: int = 0
    commands: tuple[tuple[int, int, int, int], ...] = ()

    @classmethod
    def of(
        cls,
        client: EffectiveCapabilities,
        limits: EffectiveCapabilities,
        maps: DmaMaps,
        commands: DmaCommands,
    ) -> ConnectionState:
        """Return the state of a connection that has these parts."""
        return cls(client, limits, maps.all, commands.layout, commands.next_id, commands.waiting)

    def to_values(self) -> dict[str, Any]:
        """Return it as values that JSON has."""
        return {
            "client": asdict(self.client),
            "limits": asdict(self.limits),
            "maps": [list(each) for each in self.maps],
            "layout": self.layout.name,
            "next-command-id": self.next_command_id,
            "commands": [list(each) for each in self.commands],
        }

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> ConnectionState:
        """Return what `to_values` has made values of.

        Raises:
            InternalError: The values are not such a state.
        """
        try:
            return cls(
                client=EffectiveCapabilities(**values["client"]),
                limits=EffectiveCapabilities(**values["limits"]),
                maps=tuple((address, size, flags) for address, size, flags in values["maps"]),
                layout=DmaLayout[values["layout"]],
                next_command_id=values["next-command-id"],
                commands=tuple((a, b, c, d) for a, b, c, d in values["commands"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InternalError(f"this is no saved connection: {error!r}") from error

    def restore_maps(self) -> DmaMaps:
        """Return the ranges that are mapped."""
        maps = DmaMaps(self.limits.max_dma_maps)
        for address, size, flags in self.maps:
            maps.add(address, size, DmaMapFlag(flags))
        return maps

    def restore_commands(self) -> DmaCommands:
        """Return the commands that wait for replies."""
        waiting = {
            command_id: (Command(code), DmaAccess(address, count))
            for command_id, code, address, count in self.commands
        }
        return DmaCommands(self.layout, self.next_command_id, waiting)
