"""Parts of messages that depend on nothing but a few bytes, worked out once.

The same few requests come over and over, and a guest's CPU waits for each. Everything here is a
pure function with a small cache, so that a peer that never repeats itself gains nothing and costs
nothing.
"""

from __future__ import annotations

from functools import lru_cache

from ballast_protocol.errors import MalformedError
from ballast_protocol.vhost_user.message import (
    REPLY_FLAGS,
    ConfigAccess,
    ConfigFlag,
    Header,
    HeaderFlag,
    U64Payload,
)
from ballast_protocol.vhost_user.rules import RULES, UNKNOWN

# Inverting an IntFlag forgets the bits that it does not name, so masks are plain numbers here.
_KNOWN_FLAGS = int(HeaderFlag.VERSION_MASK | HeaderFlag.REPLY | HeaderFlag.NEED_REPLY)


@lru_cache(maxsize=64)
def read_header(data: bytes) -> Header:
    """Read a header."""
    return Header.unpack(data)


@lru_cache(maxsize=64)
def check_header(data: bytes, fd_count: int) -> None:
    """Refuse a header that no request may have.

    Raises:
        MalformedError: So it is.
    """
    header = read_header(data)
    if header.flags & HeaderFlag.VERSION_MASK != HeaderFlag.VERSION:
        raise MalformedError(f"flags {int(header.flags):#x} are of another protocol version")
    if header.flags & HeaderFlag.REPLY:
        raise MalformedError("a reply, though nothing was asked")
    if int(header.flags) & ~_KNOWN_FLAGS:
        raise MalformedError(f"flags {int(header.flags):#x} have unknown bits")
    rule = RULES.get(header.request, UNKNOWN)
    least, most = rule.sizes
    if not least <= header.size <= most:
        raise MalformedError(f"a payload of {header.size} bytes, not {least} to {most}")
    fewest, highest = rule.fds
    if not fewest <= fd_count <= highest:
        raise MalformedError(f"{fd_count} file descriptors came, not {fewest} to {highest}")


@lru_cache(maxsize=64)
def reply_header(request: int, size: int) -> bytes:
    """Return what a reply begins with."""
    return Header(request, REPLY_FLAGS, size).pack()


@lru_cache(maxsize=8)
def status_payload(value: int) -> bytes:
    """Return the payload of an acknowledgement."""
    return U64Payload(value).pack()


@lru_cache(maxsize=8)
def config_head(offset: int, size: int, flags: ConfigFlag) -> bytes:
    """Return what precedes the bytes of a config space."""
    return ConfigAccess(offset, size, flags).pack()
