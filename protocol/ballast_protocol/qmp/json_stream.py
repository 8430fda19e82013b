"""QEMU's JSON dialect, read from a byte stream that nobody framed.

QMP has no framing: a document ends where its brackets balance, several may share a line, and one
may span many. The dialect is RFC 8259 plus 'single quoted' strings (docs/interop/qmp-spec.rst).
What follows bad input is QEMU 11.1's behaviour: one complaint at the first wrong token, then
silence until the brackets balance; after a byte that starts no token, reading goes on at the next
bracket, comma, colon or control character. 0xFF is such a byte everywhere, so a client that lost
its place sends one and knows that what comes next is read afresh.
"""

from __future__ import annotations

import re
from enum import Enum

from ballast_protocol.errors import MalformedError
from ballast_protocol.qmp.json_document import NUMBER, Assembler, Document, TokenKind, stray

MAX_DOCUMENT_BYTES = 64 << 10
"""Bytes of tokens that one document may have. QEMU takes 64 MiB; no command here needs 1 KiB."""

MAX_NESTING = 64
"""How deep one document may nest. QEMU takes 1024; no command here needs more than 3."""

_STRUCTURAL = {byte: TokenKind(chr(byte)) for byte in b"{}[]:,"}
_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING_BODY = {
    quote: re.compile(rb"[^%c\\\x00-\x1f\xfe\xff]*" % quote) for quote in (ord('"'), ord("'"))
}
_WORD_BODY = re.compile(rb"[a-z]*")
_NUMBER_BODY = re.compile(rb"[-+.0-9eE]*")
_UNTIL_RECOVERY = re.compile(rb"[^\x00-\x08\x0a-\x1f\xfe\xff\[\]{}:,]*")


class _Lexing(Enum):
    """Where in a token the bytes so far have led."""

    BETWEEN = "between tokens"
    STRING = "in a string"
    ESCAPE = "after a string's backslash"
    WORD = "in a lower-case word"
    NUMBER = "in a number"
    RECOVERY = "after a byte that starts no token"


class JsonStream:
    """Cuts a byte stream into JSON documents, within bounds, whatever the bytes are.

    Memory is bounded by the document limit plus what the caller feeds before taking documents
    out. Documents are cut one at a time, on demand, so that a caller who stops asking leaves the
    rest unread.
    """

    def __init__(
        self, max_document_bytes: int = MAX_DOCUMENT_BYTES, max_nesting: int = MAX_NESTING
    ) -> None:
        self._max_document_bytes = max_document_bytes
        self._max_nesting = max_nesting
        self._input = b""
        self._position = 0
        self._lexing = _Lexing.BETWEEN
        self._quote = 0
        self._token = bytearray()
        self._begin_document()

    def _begin_document(self) -> None:
        self._assembler = Assembler()
        self._document_bytes = 0
        self._open_braces = 0
        self._open_brackets = 0
        self._is_refused = False

    def feed(self, data: bytes) -> None:
        """Add bytes as they arrived."""
        self._input = self._input[self._position :] + data
        self._position = 0

    def next_document(self) -> Document | None:
        """Return the next whole document, or None when more bytes are needed.

        Raises:
            MalformedError: The bytes break the syntax or a bound. The stream has already dealt
                with it; asking again goes on behind the bad part.
        """
        while self._position < len(self._input):
            kind = self._next_token()
            if kind is not None:
                document = self._take(kind)
                if document is not None:
                    return document
        return None

    def _next_token(self) -> TokenKind | None:
        """Read on to the end of a token, or of the input; the text is then in `_token`."""
        if self._lexing is _Lexing.BETWEEN:
            return self._start_token()
        if self._lexing is _Lexing.STRING:
            return self._continue_string()
        if self._lexing is _Lexing.ESCAPE:
            self._continue_escape()
            return None
        if self._lexing is _Lexing.RECOVERY:
            self._position = self._end_of(_UNTIL_RECOVERY)
            if self._position < len(self._input):
                self._lexing = _Lexing.BETWEEN
            return None
        if self._lexing is _Lexing.WORD:
            return self._continue_bare(_WORD_BODY, TokenKind.WORD)
        return self._continue_bare(_NUMBER_BODY, TokenKind.NUMBER)

    def _end_of(self, pattern: re.Pattern[bytes]) -> int:
        match = pattern.match(self._input, self._position)
        return match.end() if match else self._position

    def _start_token(self) -> TokenKind | None:
        self._token.clear()
        self._position = self._end_of(_SPACE)
        if self._position == len(self._input):
            return None
        byte = self._input[self._position]
        if byte in _STRUCTURAL:
            self._position += 1
            return _STRUCTURAL[byte]
        if byte in _STRING_BODY:
            self._position += 1
            self._quote = byte
            self._lexing = _Lexing.STRING
        elif ord("a") <= byte <= ord("z"):
            self._lexing = _Lexing.WORD
        elif byte == ord("-") or ord("0") <= byte <= ord("9"):
            self._lexing = _Lexing.NUMBER
        else:
            self._refuse_byte()
        return None

    def _continue_string(self) -> TokenKind | None:
        self._grow(self._end_of(_STRING_BODY[self._quote]))
        if self._position == len(self._input):
            return None
        byte = self._input[self._position]
        if byte == self._quote:
            self._position += 1
            self._lexing = _Lexing.BETWEEN
            return TokenKind.STRING
        if byte == ord("\\"):
            self._lexing = _Lexing.ESCAPE
            self._grow(self._position + 1)
        else:
            self._refuse_byte()
        return None

    def _continue_escape(self) -> None:
        if self._input[self._position] in b"\xfe\xff" or self._input[self._position] < 0x20:
            self._refuse_byte()
        else:
            self._lexing = _Lexing.STRING
            self._grow(self._position + 1)

    def _continue_bare(self, pattern: re.Pattern[bytes], kind: TokenKind) -> TokenKind | None:
        self._grow(self._end_of(pattern))
        if self._position == len(self._input):
            return None
        self._lexing = _Lexing.BETWEEN
        if kind is TokenKind.NUMBER and not self._is_refused and not NUMBER.fullmatch(self._token):
            error = stray(self._token)
            self._recover()
            raise error
        return kind

    def _grow(self, end: int) -> None:
        """Move the input up to `end` into the token, unless the document is refused already."""
        piece = self._input[self._position : end]
        self._position = end
        if self._is_refused:
            return
        if self._document_bytes + len(self._token) + len(piece) > self._max_document_bytes:
            self._token.clear()
            self._is_refused = True
            raise MalformedError("JSON token size limit exceeded")
        self._token += piece

    def _refuse_byte(self) -> None:
        """Drop a byte that cannot be here and with it the document, complaining once."""
        error = stray(self._input[self._position : self._position + 1])
        is_news = not self._is_refused
        self._position += 1
        self._recover()
        if is_news:
            raise error

    def _recover(self) -> None:
        self._token.clear()
        self._lexing = _Lexing.RECOVERY
        self._begin_document()

    def _take(self, kind: TokenKind) -> Document | None:
        """Hand a token to the assembler, and begin afresh where the brackets balance."""
        self._document_bytes += len(self._token) + 1
        is_balanced = self._balance(kind)
        try:
            if self._is_refused:
                return None
            self._check_bounds()
            return self._assembler.take(kind, bytes(self._token))
        except MalformedError:
            self._is_refused = True
            raise
        finally:
            if is_balanced:
                self._begin_document()

    def _check_bounds(self) -> None:
        if self._document_bytes > self._max_document_bytes:
            raise MalformedError("JSON token size limit exceeded")
        if self._open_braces + self._open_brackets > self._max_nesting:
            raise MalformedError("JSON nesting depth limit exceeded")

    def _balance(self, kind: TokenKind) -> bool:
        """Count brackets; return whether none is open, or one was closed that was not open."""
        self._open_braces += (kind is TokenKind.OPEN_BRACE) - (kind is TokenKind.CLOSE_BRACE)
        self._open_brackets += (kind is TokenKind.OPEN_BRACKET) - (kind is TokenKind.CLOSE_BRACKET)
        return (
            min(self._open_braces, self._open_brackets) < 0
            or self._open_braces == self._open_brackets == 0
        )
