from __future__ import annotations

import pytest

from ballast_protocol.errors import MalformedError
from ballast_protocol.qmp.json_document import Assembler, Document, JsonValue, TokenKind


def scalar(kind: TokenKind, text: bytes) -> JsonValue:
    document = Assembler().take(kind, text)
    assert document is not None
    return document.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0", 0),
        (b"-0", 0),
        (b"18446744073709551615", (1 << 64) - 1),
        (b"-9223372036854775808", -(1 << 63)),
        (b"18446744073709551616", 2.0**64),
        (b"-9223372036854775809", -(2.0**63)),
        (b"1" + b"0" * 300, 1e300),
        (b"1.5", 1.5),
        (b"2e3", 2000.0),
    ],
)
def test_integers_beyond_64_bits_are_floats(text: bytes, value: float) -> None:
    read = scalar(TokenKind.NUMBER, text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (rb"\"\'\\\/", "\"'\\/"),
        (rb"\b\f\n\r\t", "\b\f\n\r\t"),
        (rb"\u00e9\u20AC", "é€"),
        (rb"\ud83d\ude00", "😀"),
        (rb"\\ud83d", "\\ud83d"),
        ("é😀".encode(), "é😀"),
    ],
)
def test_strings(body: bytes, value: str) -> None:
    assert scalar(TokenKind.STRING, body) == value


@pytest.mark.parametrize("body", [rb"\ude00\ud83d", rb"\ud83d", rb"\ud83d\u0041"])
def test_half_a_surrogate_pair(body: bytes) -> None:
    with pytest.raises(MalformedError, match="is not a valid Unicode character"):
        scalar(TokenKind.STRING, body)


def test_words() -> None:
    texts = (b"true", b"false", b"null")
    assert [scalar(TokenKind.WORD, text) for text in texts] == [True, False, None]


def test_an_object_is_whole_at_its_last_brace() -> None:
    assembler = Assembler()
    tokens = [
        (TokenKind.OPEN_BRACE, b""),
        (TokenKind.STRING, b"a"),
        (TokenKind.COLON, b""),
        (TokenKind.OPEN_BRACKET, b""),
        (TokenKind.CLOSE_BRACKET, b""),
    ]
    assert [assembler.take(*token) for token in tokens] == [None] * 5
    assert assembler.take(TokenKind.CLOSE_BRACE, b"") == Document({"a": []})
