"""One client's QMP conversation, without its socket.

::

    shell                            ServerSession
    send(session.greeting())
    receive_data(bytes)  --------->  cuts documents, answers what concerns the protocol itself
    next_event()  <----------------  Command: execute, send command.success(..) or .failure(..)
                                     Reply: send it as it is
                                     None: read more bytes

A client starts in *negotiation mode*, where `qmp_capabilities` is the only command, and changes to
*command mode* with it; events go to clients in command mode only. Documents are looked at when
they are asked for and not before, so a reply always leaves in its place, and the change of mode
cannot overtake the reply that announces it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ballast_protocol.errors import MalformedError
from ballast_protocol.qmp.json_document import JsonValue
from ballast_protocol.qmp.json_stream import JsonStream
from ballast_protocol.qmp.schema import (
    Argument,
    ErrorClass,
    Kind,
    RefusedError,
    check_arguments,
)

NEGOTIATE = "qmp_capabilities"
"""The command that ends the negotiation mode."""

NEGOTIATE_ARGUMENTS = (Argument("enable", Kind.ARRAY, is_optional=True, choices=("oob",)),)
"""Out-of-band execution is a capability that QEMU knows and that is not offered here."""


@dataclass(frozen=True)
class Version:
    """Who is speaking, as the greeting and `query-version` say it.

    The `qemu` member, whose name the protocol fixes, carries the version of this server, and
    `package` says which server that is.

    Attributes:
        major: First part of the version.
        minor: Second part.
        micro: Third part.
        package: Name and version of the software.
    """

    major: int
    minor: int
    micro: int
    package: str

    def to_json(self) -> dict[str, JsonValue]:
        """Return QEMU's `VersionInfo`."""
        triple: JsonValue = {"major": self.major, "minor": self.minor, "micro": self.micro}
        return {"qemu": triple, "package": self.package}


def _encode(message: Mapping[str, object]) -> bytes:
    """Return a message as the specification wants it: ASCII, ended by CRLF."""
    return json.dumps(message, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\r\n"


def encode_event(name: str, data: Mapping[str, object], time_ns: int) -> bytes:
    """Return an event that happened `time_ns` nanoseconds after the Unix epoch."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    timestamp = {"seconds": seconds, "microseconds": rest_ns // 1000}
    return _encode({"event": name, "data": data, "timestamp": timestamp})


def encode_error(error: RefusedError, echo: Mapping[str, JsonValue] | None = None) -> bytes:
    """Return an error reply; `echo` is the request's `id` member, if it had one."""
    text = f"{error} ({error.hint})" if error.hint else str(error)
    return _encode({"error": {"class": error.error_class.value, "desc": text}, **(echo or {})})


@dataclass(frozen=True)
class Command:
    """A well-formed request to execute something.

    Attributes:
        name: The command. Whether there is one of that name is not known yet.
        arguments: Its arguments, unchecked.
        echo: `{"id": ...}` if the request had an id, else empty: replies repeat it.
    """

    name: str
    arguments: dict[str, JsonValue]
    echo: dict[str, JsonValue]

    def success(self, value: object) -> bytes:
        """Return the reply that the command went well.

        Raises:
            TypeError: The value has no JSON form.
            ValueError: The value holds a number that JSON cannot say.
        """
        return _encode({"return": value, **self.echo})

    def failure(self, error: RefusedError) -> bytes:
        """Return the reply that the command was refused."""
        return encode_error(error, self.echo)


@dataclass(frozen=True)
class Reply:
    """What to send to the client, as it is."""

    data: bytes


def _read_command(request: dict[str, JsonValue], echo: dict[str, JsonValue]) -> Command:
    for key, value in request.items():
        if key == "execute":
            if not isinstance(value, str):
                raise RefusedError("QMP input member 'execute' must be a string")
        elif key == "arguments":
            if not isinstance(value, dict):
                raise RefusedError("QMP input member 'arguments' must be an object")
        elif key != "id":
            raise RefusedError(f"QMP input member '{key}' is unexpected")
    name, arguments = request.get("execute"), request.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise RefusedError("QMP input lacks member 'execute'")
    return Command(name, arguments, echo)


class ServerSession:
    """The protocol state of one client.

    Attributes:
        in_command_mode: Whether the client has finished the negotiation and may get events.
    """

    def __init__(self, version: Version) -> None:
        self.in_command_mode = False
        self._version = version
        self._stream = JsonStream()

    def greeting(self) -> bytes:
        """Return what the server says first."""
        return _encode({"QMP": {"version": self._version.to_json(), "capabilities": []}})

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the client, in any chunking."""
        self._stream.feed(data)

    def next_event(self) -> Command | Reply | None:
        """Return what to do next, or None if that needs more bytes from the client."""
        try:
            document = self._stream.next_document()
        except MalformedError as error:
            return Reply(encode_error(RefusedError(str(error))))
        if document is None:
            return None
        request = document.value
        if not isinstance(request, dict):
            return Reply(encode_error(RefusedError("QMP input must be a JSON object")))
        echo = {"id": request["id"]} if "id" in request else {}
        try:
            command = _read_command(request, echo)
            if command.name == NEGOTIATE or not self.in_command_mode:
                return self._negotiate(command)
        except RefusedError as error:
            return Reply(encode_error(error, echo))
        return command

    def _negotiate(self, command: Command) -> Reply:
        if command.name != NEGOTIATE:
            raise RefusedError(
                f"Expecting capabilities negotiation with '{NEGOTIATE}'",
                ErrorClass.COMMAND_NOT_FOUND,
            )
        check_arguments(NEGOTIATE_ARGUMENTS, command.arguments)
        if self.in_command_mode:
            raise RefusedError(
                "Capabilities negotiation is already complete, command ignored",
                ErrorClass.COMMAND_NOT_FOUND,
            )
        # The check has left `oob` as the only thing that can stand in the list.
        if command.arguments.get("enable"):
            raise RefusedError("Capability oob not available")
        self.in_command_mode = True
        return Reply(command.success({}))
