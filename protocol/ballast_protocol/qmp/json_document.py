"""Builds one document of QEMU's JSON dialect out of its tokens.

RFC 8259, with strings in 'single quotes' too. The complaints are those of QEMU 11.1, without the
position that it puts in front.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum

from ballast_protocol.errors import MalformedError

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]

NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?P<fraction>\.[0-9]+)?(?P<exponent>[eE][-+]?[0-9]+)?")
_ESCAPE = re.compile(
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
    r"|\\u([0-9a-fA-F]{4})"
    r"|\\(.)",
    re.DOTALL,
)
_SIMPLE_ESCAPES = dict(zip("\"'\\/bfnrt", "\"'\\/\b\f\n\r\t", strict=True))
_WORDS: dict[bytes, JsonValue] = {b"true": True, b"false": False, b"null": None}
_INTEGER_DIGITS = 20
"""More digits than 2^64 has, so a longer number is a float; `int()` of a huge one is slow."""


class TokenKind(Enum):
    """What a token is; the brackets and separators are their own text."""

    STRING = "string"
    NUMBER = "number"
    WORD = "word"
    OPEN_BRACE = "{"
    CLOSE_BRACE = "}"
    OPEN_BRACKET = "["
    CLOSE_BRACKET = "]"
    COLON = ":"
    COMMA = ","


class _Expecting(Enum):
    """What an open object or array can go on with."""

    FIRST = "first member, or the end"
    NEXT = "another member"
    COLON = "':'"
    VALUE = "the value of a key"
    SEPARATOR = "',' or the end"


@dataclass(frozen=True)
class Document:
    """One whole JSON document.

    Attributes:
        value: What it says. A `None` here is JSON's null.
    """

    value: JsonValue


@dataclass
class _Frame:
    """An object or array that is still open."""

    container: list[JsonValue] | dict[str, JsonValue]
    expecting: _Expecting = _Expecting.FIRST
    key: str = ""


def _parse_error(message: str) -> MalformedError:
    return MalformedError(f"JSON parse error, {message}")


def stray(text: bytes | bytearray) -> MalformedError:
    """Return the complaint about bytes that are no token."""
    return _parse_error(f"stray '{text.decode(errors='replace')}'")


def _unescape(match: re.Match[str]) -> str:
    high, low, code_point, simple = match.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) & 0x3FF) << 10) + (int(low, 16) & 0x3FF))
    if code_point:
        if 0xD800 <= int(code_point, 16) <= 0xDFFF:
            raise _parse_error(f"{match[0]} is not a valid Unicode character")
        return chr(int(code_point, 16))
    if simple not in _SIMPLE_ESCAPES:
        raise _parse_error("invalid escape sequence in string")
    return _SIMPLE_ESCAPES[simple]


def _read_string(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _parse_error("invalid UTF-8 sequence in string") from error
    return _ESCAPE.sub(_unescape, text) if "\\" in text else text


def _read_number(text: bytes) -> int | float:
    match = NUMBER.fullmatch(text)
    if match is None:
        raise stray(text)
    is_integer = not match["fraction"] and not match["exponent"]
    if is_integer and len(text) <= _INTEGER_DIGITS:
        value = int(text)
        if -(1 << 63) <= value < 1 << 64:
            return value
    approximate = float(text)
    if not math.isfinite(approximate):
        # QEMU takes it and answers with `inf`, which is no JSON.
        raise _parse_error(f"number out of range '{text[:_INTEGER_DIGITS].decode()}'")
    return approximate


def _read_word(text: bytes) -> JsonValue:
    if text not in _WORDS:
        raise _parse_error(f"invalid keyword '{text.decode()}'")
    return _WORDS[text]


@dataclass
class Assembler:
    """Builds one document out of tokens and complains at the first that does not fit."""

    frames: list[_Frame] = field(default_factory=list)

    def take(self, kind: TokenKind, text: bytes) -> Document | None:
        """Add a token; return the document that it completes, if it does."""
        if not self.frames:
            return self._value(kind, text)
        frame = self.frames[-1]
        if frame.expecting is _Expecting.SEPARATOR:
            return self._separator(frame, kind)
        if frame.expecting is _Expecting.COLON:
            if kind is not TokenKind.COLON:
                raise _parse_error("expecting ':'")
            frame.expecting = _Expecting.VALUE
            return None
        if frame.expecting is _Expecting.FIRST and kind is self._closer(frame):
            return self._close()
        if isinstance(frame.container, dict) and frame.expecting is not _Expecting.VALUE:
            return self._key(frame, frame.container, kind, text)
        return self._value(kind, text)

    @staticmethod
    def _closer(frame: _Frame) -> TokenKind:
        return (
            TokenKind.CLOSE_BRACE if isinstance(frame.container, dict) else TokenKind.CLOSE_BRACKET
        )

    def _separator(self, frame: _Frame, kind: TokenKind) -> Document | None:
        if kind is self._closer(frame):
            return self._close()
        if kind is not TokenKind.COMMA:
            raise _parse_error(f"expected ',' or '{self._closer(frame).value}'")
        frame.expecting = _Expecting.NEXT
        return None

    @staticmethod
    def _key(frame: _Frame, members: dict[str, JsonValue], kind: TokenKind, text: bytes) -> None:
        if kind is not TokenKind.STRING:
            raise _parse_error("expecting key")
        frame.key = _read_string(text)
        if frame.key in members:
            raise _parse_error("duplicate key")
        frame.expecting = _Expecting.COLON

    def _value(self, kind: TokenKind, text: bytes) -> Document | None:
        if kind is TokenKind.OPEN_BRACE:
            self.frames.append(_Frame({}))
            return None
        if kind is TokenKind.OPEN_BRACKET:
            self.frames.append(_Frame([]))
            return None
        if kind is TokenKind.STRING:
            return self._complete(_read_string(text))
        if kind is TokenKind.NUMBER:
            return self._complete(_read_number(text))
        if kind is TokenKind.WORD:
            return self._complete(_read_word(text))
        raise _parse_error("expecting value")

    def _close(self) -> Document | None:
        return self._complete(self.frames.pop().container)

    def _complete(self, value: JsonValue) -> Document | None:
        if not self.frames:
            return Document(value)
        frame = self.frames[-1]
        if isinstance(frame.container, dict):
            frame.container[frame.key] = value
        else:
            frame.container.append(value)
        frame.expecting = _Expecting.SEPARATOR
        return None
