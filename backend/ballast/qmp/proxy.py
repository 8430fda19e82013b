"""One socket for QEMU and its balloon: the balloon's commands are ours, all others are QEMU's.

What comes from QEMU passes unchanged: its greeting, its replies and errors, its events with their
time stamps. Only answers that list what there is get our part added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ballast.qmp import qom
from ballast.qmp.commands import COMMANDS, EVENTS, Context, execute
from ballast.qmp.guard import check_harmless
from ballast.qmp.monitor import QemuMonitor
from ballast.qmp.service import Greeting
from ballast.streams.fds import FdSet
from ballast_protocol.qmp import Command
from ballast_protocol.qmp.introspection import CommandType, describe, merge
from ballast_protocol.qmp.json_stream import JsonStream

MAX_DOCUMENT_BYTES = 1 << 20
"""Bytes of tokens in one of QEMU's commands. QEMU itself takes 64 MiB."""

MAX_NESTING = 256
"""How deep one of QEMU's commands may nest. QEMU itself takes 1024."""

_TAKE_DESCRIPTORS = frozenset(("getfd", "add-fd"))


class ProxyService:
    """Executes the balloon's commands here, and all others in QEMU.

    Args:
        context: What commands of ours work on.
        monitor: QEMU.
        is_balloon_qemus: The balloon is QEMU's own: only its target goes through us, so that
            nobody moves it behind the back of whoever decides.
    """

    def __init__(
        self, context: Context, monitor: QemuMonitor, *, is_balloon_qemus: bool = False
    ) -> None:
        self._context = context
        self._monitor = monitor
        self._is_balloon_qemus = is_balloon_qemus

    def greeting(self) -> Greeting:
        """Greet as QEMU, or as Ballast while there is no QEMU."""
        qemu = self._monitor.greeting
        if qemu is None:
            return Greeting(self._context.version.to_json())
        return Greeting(qemu.version, qemu.has_out_of_band, is_qemus=True)

    def stream(self) -> JsonStream:
        """Return a stream that takes what QEMU's commands may need."""
        return JsonStream(MAX_DOCUMENT_BYTES, MAX_NESTING)

    def takes_descriptors(self, command: Command) -> bool:
        """Return whether QEMU wants a descriptor with the command."""
        return command.name in _TAKE_DESCRIPTORS

    async def execute(self, command: Command, fds: FdSet) -> object:
        """Execute a command where it belongs."""
        if self._is_ours(command):
            return await execute(self._context, command)
        if self._monitor.greeting is None and command.name in COMMANDS:
            return await execute(self._context, command)
        if not self._is_balloon_qemus:
            await check_harmless(self._monitor, command)
        answer = await self._monitor.execute(
            command.name,
            command.arguments,
            out_of_band=command.is_out_of_band,
            fds=fds,
        )
        return self._with_ours(command, answer)

    def _is_ours(self, command: Command) -> bool:
        if command.name == "balloon" or command.name.startswith("ballast-"):
            return command.name in COMMANDS
        if self._is_balloon_qemus:
            return False
        if command.name == "query-balloon":
            return True
        if command.name in ("qom-get", "qom-set"):
            path, name = command.arguments.get("path"), command.arguments.get("property")
            return self._is_balloon(path) and qom.is_own_property(name)
        return False

    def _is_balloon(self, path: object) -> bool:
        """Return whether a path leads to a balloon of ours."""
        if self._is_balloon_qemus:
            return False
        return isinstance(path, str) and qom.is_balloon(self._context.qom_tree, path)

    def _with_ours(self, command: Command, answer: Any) -> Any:
        """Return QEMU's answer, completed where it lists what there is."""
        if command.name == "query-commands":
            known = {each["name"] for each in answer}
            return [*answer, *({"name": name} for name in COMMANDS if name not in known)]
        if command.name == "query-qmp-schema":
            return merge(answer, _missing_from({each["name"] for each in answer}))
        path = command.arguments.get("path")
        if command.name == "qom-list" and isinstance(path, str) and self._is_balloon(path):
            return _completed(answer, qom.list_properties(self._context.qom_tree, path))
        if command.name == "qom-list-get":
            return self._with_values(command.arguments.get("paths"), answer)
        return answer

    def _with_values(self, paths: object, answer: Any) -> Any:
        if not isinstance(paths, list) or len(paths) != len(answer):
            return answer
        for path, each in zip(paths, answer, strict=True):
            if self._is_balloon(path):
                values = qom.property_values(self._context.qom_tree, self._context.vm, path)
                each["properties"] = _completed(each["properties"], values)
        return answer


def _completed(theirs: list[Any], ours: list[Any]) -> list[Any]:
    known = {each["name"] for each in theirs}
    return [*theirs, *(each for each in ours if each["name"] not in known)]


def _missing_from(known: set[str]) -> list[dict[str, Any]]:
    """Return the description of commands and events of ours that are not among the known."""
    commands: Mapping[str, CommandType] = {
        name: CommandType(each.arguments, each.returns)
        for name, each in COMMANDS.items()
        if name not in known
    }
    events = {name: each.data for name, each in EVENTS.items() if name not in known}
    return describe(commands, events)
