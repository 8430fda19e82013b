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
    ErrorClass,
    RefusedError,
    check_arguments,
)
from ballast_protocol.qmp.types import Choice, ListOf, Member

NEGOTIATE = "qmp_capabilities"
"""The command that ends the negotiation mode."""

OUT_OF_BAND = "oob"
"""The capability to execute commands before those that came earlier are done."""

NEGOTIATE_ARGUMENTS = (
    Member(
        "enable",
        ListOf(Choice((OUT_OF_BAND,), "QMPCapability")),
        "Capabilities to enable, of those that the greeting has offered.",
        is_optional=True,
    ),
)


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


def encode_message(message: Mapping[str, object]) -> bytes:
    """Return a message as the specification wants it: ASCII, ended by CRLF."""
    return json.dumps(message, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\r\n"


def encode_event(name: str, data: Mapping[str, object], time_ns: int) -> bytes:
    """Return an event that happened `time_ns` nanoseconds after the Unix epoch."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    timestamp = {"seconds": seconds, "microseconds": rest_ns // 1000}
    return encode_message({"event": name, "data": data, "timestamp": timestamp})


def encode_error(error: RefusedError, echo: Mapping[str, JsonValue] | None = None) -> bytes:
    """Return an error reply; `echo` is the request's `id` member, if it had one."""
    text = f"{error} ({error.hint})" if error.hint else str(error)
    return encode_message(
        {"error": {"class": error.error_class.value, "desc": text}, **(echo or {})}
    )


@dataclass(frozen=True)
class Command:
    """A well-formed request to execute something.

    Attributes:
        name: The command. Whether there is one of that name is not known yet.
        arguments: Its arguments, unchecked.
        echo: `{"id": ...}` if the request had an id, else empty: replies repeat it.
        is_out_of_band: It is to be executed at once, whatever came before and is not done.
    """

    name: str
    arguments: dict[str, JsonValue]
    echo: dict[str, JsonValue]
    is_out_of_band: bool = False

    def success(self, value: object) -> bytes:
        """Return the reply that the command went well.

        Raises:
            TypeError: The value has no JSON form.
            ValueError: The value holds a number that JSON cannot say.
        """
        return encode_message({"return": value, **self.echo})

    def failure(self, error: RefusedError) -> bytes:
        """Return the reply that the command was refused."""
        return encode_error(error, self.echo)


@dataclass(frozen=True)
class Reply:
    """What to send to the client, as it is.

    Attributes:
        data: The bytes.
        is_to_garbage: What the client sent was not JSON, or broke a bound.
    """

    data: bytes
    is_to_garbage: bool = False


def _read_command(
    request: dict[str, JsonValue], echo: dict[str, JsonValue], *, allow_out_of_band: bool
) -> Command:
    verbs = ("execute", "exec-oob") if allow_out_of_band else ("execute",)
    found = ""
    for key, value in request.items():
        if key in verbs:
            if not isinstance(value, str):
                raise RefusedError(f"QMP input member '{key}' must be a string")
            if found:
                raise RefusedError(f"QMP input member '{key}' clashes with '{found}'")
            found = key
        elif key == "arguments":
            if not isinstance(value, dict):
                raise RefusedError("QMP input member 'arguments' must be an object")
        elif key != "id":
            raise RefusedError(f"QMP input member '{key}' is unexpected")
    name, arguments = request.get(found), request.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise RefusedError("QMP input lacks member 'execute'")
    return Command(name, arguments, echo, is_out_of_band=found == "exec-oob")


class ServerSession:
    """The protocol state of one client.

    Attributes:
        in_command_mode: Whether the client has finished the negotiation and may get events.
        is_out_of_band_enabled: Whether it may have commands executed out of band.
    """

    def __init__(
        self,
        version: Mapping[str, JsonValue],
        *,
        offers_out_of_band: bool = False,
        stream: JsonStream | None = None,
    ) -> None:
        """Begin with the greeting.

        Args:
            version: Who greets: QEMU's `VersionInfo`.
            offers_out_of_band: Whether the client may enable out-of-band execution.
            stream: What reads the client's bytes, if not within the usual bounds.
        """
        self.in_command_mode = False
        self._version = version
        self._offers_out_of_band = offers_out_of_band
        self.is_out_of_band_enabled = False
        self._stream = stream or JsonStream()

    def greeting(self) -> bytes:
        """Return what the server says first."""
        capabilities = [OUT_OF_BAND] if self._offers_out_of_band else []
        return encode_message({"QMP": {"version": self._version, "capabilities": capabilities}})

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the client, in any chunking."""
        self._stream.feed(data)

    def next_event(self) -> Command | Reply | None:
        """Return what to do next, or None if that needs more bytes from the client."""
        try:
            document = self._stream.next_document()
        except MalformedError as error:
            return Reply(encode_error(RefusedError(str(error))), is_to_garbage=True)
        if document is None:
            return None
        request = document.value
        if not isinstance(request, dict):
            return Reply(encode_error(RefusedError("QMP input must be a JSON object")))
        echo = {"id": request["id"]} if "id" in request else {}
        try:
            command = _read_command(request, echo, allow_out_of_band=self.is_out_of_band_enabled)
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
        if command.is_out_of_band:
            raise RefusedError(f"The command {NEGOTIATE} does not support OOB")
        check_arguments(NEGOTIATE_ARGUMENTS, command.arguments)
        if self.in_command_mode:
            raise RefusedError(
                "Capabilities negotiation is already complete, command ignored",
                ErrorClass.COMMAND_NOT_FOUND,
            )
        # The check has left `oob` as the only thing that can stand in the list.
        if command.arguments.get("enable"):
            if not self._offers_out_of_band:
                raise RefusedError(f"Capability {OUT_OF_BAND} not available")
            self.is_out_of_band_enabled = True
        self.in_command_mode = True
        return Reply(command.success({}))
