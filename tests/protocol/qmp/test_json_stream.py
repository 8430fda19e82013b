from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast_protocol.errors import MalformedError
from ballast_protocol.qmp.json_document import JsonValue
from ballast_protocol.qmp.json_stream import MAX_NESTING, JsonStream

JSON_VALUES: st.SearchStrategy[JsonValue] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: st.lists(children) | st.dictionaries(st.text("abc'\"\\é"), children),
    max_leaves=10,
)


def drain(stream: JsonStream) -> list[object]:
    """Return everything that the stream has: values, and complaints as exceptions' texts."""
    found: list[object] = []
    while True:
        try:
            document = stream.next_document()
        except MalformedError as error:
            found.append(f"! {error}")
            continue
        if document is None:
            return found
        found.append(document.value)


def read(*chunks: bytes, **bounds: int) -> list[object]:
    stream = JsonStream(**bounds)
    found: list[object] = []
    for chunk in chunks:
        stream.feed(chunk)
        found += drain(stream)
    return found


@given(st.lists(JSON_VALUES, max_size=4), st.booleans(), st.data())
def test_reads_what_was_written_in_any_chunking(
    values: list[JsonValue], is_ascii: bool, data: st.DataObject
) -> None:
    text = " ".join(json.dumps(value, ensure_ascii=is_ascii) for value in values) + "\n"
    wire = text.replace("\x7f", "\\u007f").encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    chunks = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert read(*chunks) == values


def test_reads_byte_by_byte() -> None:
    wire = b'{\'execute\': "a\\u00e9\\ud83d\\ude00\\n", "arguments": {"x": [-1.5e2, true, null]}}'
    expected = {"execute": "aé😀\n", "arguments": {"x": [-150.0, True, None]}}
    assert read(*(bytes([byte]) for byte in wire)) == [expected]


def test_several_documents_share_a_line_and_one_spans_many() -> None:
    assert read(b'{"a": 1}{"b": 2}[]', b'\n{"c":\r\n\t3\n', b"}") == [
        {"a": 1},
        {"b": 2},
        [],
        {"c": 3},
    ]


def test_single_quotes() -> None:
    assert read(b"{'it\\'s': 'a \"b\"'}") == [{"it's": 'a "b"'}]


# What QEMU 11.1.3 answers, without the position that it puts in front.
@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        (b'{"execute":}', "expecting value"),
        (b'{"execute"}', "expecting ':'"),
        (b"{]", "expecting key"),
        (b"}", "expecting value"),
        (b"{1:2}", "expecting key"),
        (b'{"a":1 "b":2}', "expected ',' or '}'"),
        (b"[1 2]", "expected ',' or ']'"),
        (b"[1,]", "expecting value"),
        (b'{"a":1,}', "expecting key"),
        (b'{"execute":tru}', "invalid keyword 'tru'"),
        (b'{"a":1,"a":2}', "duplicate key"),
        (b'["\\q"]', "invalid escape sequence in string"),
        (b'["\\ud800"]', "\\ud800 is not a valid Unicode character"),
        (b'["\\u12"]', "invalid escape sequence in string"),
        (b'["x\xc3"]', "invalid UTF-8 sequence in string"),
        (b'["x\xc0\xaf"]', "invalid UTF-8 sequence in string"),
        (b"01 ", "stray '01'"),
        (b"1. ", "stray '1.'"),
        (b"\xff", "stray '\ufffd'"),
        (b'{"a": "b\x01', "stray '\x01'"),
        (b'{"a": "b\n', "stray '\n'"),
        (b'{"a": "b\\\xff', "stray '\ufffd'"),
        (b"[1e400]", "number out of range '1e400'"),
        (b"%d", "stray '%'"),
    ],
)
def test_complains_once_and_goes_on(wire: bytes, complaint: str) -> None:
    assert read(wire, b'{"good": 1}') == [f"! JSON parse error, {complaint}", {"good": 1}]


def test_is_silent_until_the_brackets_balance() -> None:
    assert read(b'{1 2 [ {"execute": "x"} ] 3}', b"[]") == ["! JSON parse error, expecting key", []]


def test_a_stray_byte_drops_everything_up_to_a_bracket() -> None:
    assert read(b'BOGUS "x" 17{"good": 1}') == ["! JSON parse error, stray 'B'", {"good": 1}]


def test_a_sentinel_in_a_refused_document_is_silent() -> None:
    # The complaint about the document was made; the byte only ends it.
    assert read(b"{1 ", b"\xff", b"[]") == ["! JSON parse error, expecting key", []]


def test_nesting_is_bounded() -> None:
    deepest = b"[" * MAX_NESTING + b"]" * MAX_NESTING
    too_deep = b"[" + deepest + b"]"
    [value, *rest] = read(deepest, too_deep, b'{"good": 1}')
    assert isinstance(value, list)
    assert rest == ["! JSON nesting depth limit exceeded", {"good": 1}]


@pytest.mark.parametrize("opening", [b'["', b"[1", b"[a"])
def test_size_is_bounded_and_the_rest_is_passed_over(opening: bytes) -> None:
    stream = JsonStream(max_document_bytes=1000)
    complaints: list[object] = []
    for chunk in [opening, *([b"1" * 500] * 50)]:
        stream.feed(chunk.replace(b"1", b"a") if opening == b"[a" else chunk)
        complaints += drain(stream)
    assert complaints == ["! JSON token size limit exceeded"]
    stream.feed(b'"]' if opening == b'["' else b"]")
    stream.feed(b'{"good": 1}')
    assert drain(stream) == [{"good": 1}]


def test_many_small_tokens_count_too() -> None:
    wire = b"[" + b"1," * 600 + b"1]"
    assert read(wire, b'{"good": 1}', max_document_bytes=1000) == [
        "! JSON token size limit exceeded",
        {"good": 1},
    ]


def test_an_endless_string_is_not_kept() -> None:
    stream = JsonStream(max_document_bytes=1000)
    stream.feed(b'"')
    drain(stream)
    for _ in range(100):
        stream.feed(b"x" * 4096)
        drain(stream)
    assert len(stream._token) <= 1000
    assert len(stream._input) <= 4096


def test_whitespace_costs_nothing() -> None:
    assert read(b"[" + b" " * 5000 + b"1" + b"\n" * 5000 + b"]", max_document_bytes=100) == [[1]]


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_are_survived_and_a_reset_restores_order(chunks: list[bytes]) -> None:
    stream = JsonStream(max_document_bytes=64, max_nesting=4)
    for chunk in chunks:
        stream.feed(chunk)
        drain(stream)
    stream.feed(b"\xff")
    drain(stream)
    stream.feed(b'{"good": 1}')
    assert drain(stream) == [{"good": 1}]


JSON_BYTES = st.text("{}[],:\"'\\1-a\n").map(str.encode)


@given(JSON_BYTES, st.data())
def test_chunking_never_matters(wire: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(wire)))
    assert read(wire) == read(wire[:cut], wire[cut:]) == read(*(bytes([byte]) for byte in wire))
