"""What two ends of vfio-user tell each other about themselves, and how they agree.

The capabilities are JSON at the end of a VERSION message. Each is optional and has a default, so
"not said" (None) and the value that holds then (`effective`) are two things.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any

from ballast_protocol.errors import MalformedError
from ballast_protocol.vfio_user.message import MAX_FDS, MAX_VERSION_SIZE

_BOOLEANS = frozenset({"write_multiple"})


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The members of the JSON object "capabilities", None where one is not said.

    Of the specification's members only `twin_socket` is missing, which no released QEMU has.

    Attributes:
        max_data_xfer_size: Bytes of data that the sender takes in one message.
        max_msg_fds: File descriptors that the sender takes in one message.
        max_dma_maps: DMA ranges that the sender keeps at the same time.
        pgsizes: Page sizes for DMA ranges, in bytes, or'ed together.
        write_multiple: Whether the sender knows REGION_WRITE_MULTI.
    """

    max_data_xfer_size: int | None = None
    max_msg_fds: int | None = None
    max_dma_maps: int | None = None
    pgsizes: int | None = None
    write_multiple: bool | None = None


@dataclass(frozen=True, slots=True)
class EffectiveCapabilities:
    """The same with the specification's defaults in place of what was not said."""

    max_data_xfer_size: int = 1 << 20
    max_msg_fds: int = 1
    max_dma_maps: int = 65535
    pgsizes: int = 4096
    write_multiple: bool = False


DEFAULT_CAPABILITIES = Capabilities(
    max_data_xfer_size=1 << 20,
    max_msg_fds=MAX_FDS,
    max_dma_maps=65535,
    pgsizes=4096,
    write_multiple=True,
)
"""What this server says of itself to whoever asks for all of it."""

_NAMES = tuple(field.name for field in fields(Capabilities))


def effective(capabilities: Capabilities) -> EffectiveCapabilities:
    """Return what holds for a sender that has said this."""
    said = {name: getattr(capabilities, name) for name in _NAMES}
    return EffectiveCapabilities(**{k: v for k, v in said.items() if v is not None})


def parse_capabilities(data: bytes) -> Capabilities:
    """Read what follows the version numbers; members that are unknown are skipped.

    Args:
        data: JSON with a NUL behind it; or nothing at all, which says nothing.

    Raises:
        MalformedError: It is too long, not such JSON, or a member has the wrong type or range.
    """
    if not data:
        return Capabilities()
    if len(data) > MAX_VERSION_SIZE:
        raise MalformedError(f"{len(data)} bytes of capabilities, {MAX_VERSION_SIZE} are the most")
    if data[-1]:
        raise MalformedError("the capabilities do not end in a NUL")
    members = _member(_load(data[:-1]), "capabilities")
    said: dict[str, Any] = {n: _value(n, members[n]) for n in _NAMES if n in members}
    return Capabilities(**said)


def _load(data: bytes) -> object:
    try:
        document: object = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the capabilities are no JSON: {error}") from error
    return document


def _member(document: object, name: str) -> dict[str, object]:
    if isinstance(document, dict):
        found = document.get(name, {})
        if isinstance(found, dict):
            return found
    raise MalformedError("the capabilities are no JSON object with an object in it")


def _value(name: str, value: object) -> int | bool:
    if name in _BOOLEANS:
        if isinstance(value, bool):
            return value
    elif isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 64:
        return value
    raise MalformedError(f"the capability {name} cannot be {str(value)[:40]!r}")


def negotiate(proposed: Capabilities, offered: Capabilities, room: int) -> Capabilities:
    """Return what to reply to a client that has proposed its capabilities.

    The reply has only members that were proposed, as the specification demands, and no numbers
    beyond the client's, which QEMU takes for an error. Where `room` is short, the members that
    matter least are left out, so that their defaults hold.

    Args:
        proposed: What the client has said.
        offered: What this server can do; None for a member that is not to be said at all.
        room: Bytes that the encoded reply may have.

    Raises:
        MalformedError: No page size is common to both.
    """
    reply = Capabilities(
        max_data_xfer_size=_least(proposed.max_data_xfer_size, offered.max_data_xfer_size),
        max_msg_fds=None if proposed.max_msg_fds is None else offered.max_msg_fds,
        max_dma_maps=_least(proposed.max_dma_maps, offered.max_dma_maps),
        pgsizes=_common_page_sizes(proposed, offered),
        write_multiple=(proposed.write_multiple and offered.write_multiple) or None,
    )
    for name in reversed(_NAMES):
        if len(encode_capabilities(reply, room)) <= room:
            break
        reply = replace(reply, **{name: None})
    return reply


def _least(proposed: int | None, offered: int | None) -> int | None:
    return None if proposed is None or offered is None else min(proposed, offered)


def _common_page_sizes(proposed: Capabilities, offered: Capabilities) -> int | None:
    theirs, ours = effective(proposed).pgsizes, effective(offered).pgsizes
    common = theirs & ours
    if not common:
        raise MalformedError(f"page sizes {theirs:#x}, of which {ours:#x} has none")
    return None if proposed.pgsizes is None or offered.pgsizes is None else common


def encode_capabilities(capabilities: Capabilities, room: int) -> bytes:
    """Return the JSON with its NUL, or nothing where there is nothing to say and no room for "{}".

    Args:
        capabilities: What to say.
        room: Bytes that there are. The result may be longer: that is the caller's to check.
    """
    said = {name: getattr(capabilities, name) for name in _NAMES}
    said = {name: value for name, value in said.items() if value is not None}
    document = {"capabilities": said} if said else {}
    data = json.dumps(document, separators=(",", ":")).encode() + b"\0"
    return data if said or len(data) <= room else b""
