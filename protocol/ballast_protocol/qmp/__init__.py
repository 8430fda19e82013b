"""The QEMU Machine Protocol, seen from the server: JSON in any chunking in, commands out.

`json_stream` cuts and reads QEMU's JSON dialect, `session` is one client's conversation. `types` is
what declarations of commands and events are made of; `schema` checks arguments against them and
words the refusals as QEMU does, `introspection` describes them. Followed: QEMU's
docs/interop/qmp-spec.rst, and where that is silent what QEMU 11.1.3 was seen to answer.
"""

from ballast_protocol.qmp.json_document import JsonValue
from ballast_protocol.qmp.schema import ErrorClass, RefusedError, check_arguments, check_value
from ballast_protocol.qmp.session import (
    NEGOTIATE,
    NEGOTIATE_ARGUMENTS,
    Command,
    Reply,
    ServerSession,
    Version,
    encode_error,
    encode_event,
    encode_message,
)

__all__ = [
    "NEGOTIATE",
    "NEGOTIATE_ARGUMENTS",
    "Command",
    "ErrorClass",
    "JsonValue",
    "RefusedError",
    "Reply",
    "ServerSession",
    "Version",
    "check_arguments",
    "check_value",
    "encode_error",
    "encode_event",
    "encode_message",
]
