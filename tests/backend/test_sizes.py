from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.sizes import format_size, parse_size, parse_size_wanted
from ballast_protocol.errors import OperatorError

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1073741824", GIB),
        ("1G", GIB),
        ("1g", GIB),
        ("1GB", GIB),
        ("1GiB", GIB),
        (" 1.5 GiB ", 3 * GIB // 2),
        ("512M", 512 << 20),
        ("4k", 4096),
        ("2T", 2 << 40),
        ("0.5K", 512),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "G", "-1G", "1.G", "1X", "1e9", "1 000", "0x10", "1G1", "9" * 5000, "9" * 400 + ".5G"],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OperatorError, match="is not a size") as caught:
        parse_size(text)
    assert caught.value.hint


def test_a_part_of_a_byte_is_no_size() -> None:
    with pytest.raises(OperatorError, match="whole number of bytes"):
        parse_size("0.0001K")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.50 KiB"),
        (GIB, "1 GiB"),
        (-GIB, "-1 GiB"),
        (3 << 40, "3 TiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1023), st.sampled_from(["", "K", "M", "G", "T"]))
def test_a_whole_size_comes_back(number: int, unit: str) -> None:
    size = parse_size(f"{number}{unit}")
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1G", GIB),
        ("50%", 2 * GIB),
        ("100 %", 4 * GIB),
        ("12.5%", GIB // 2),
        ("+512M", 3 * GIB + GIB // 2),
        ("-1G", 2 * GIB),
        (" - 1G ", 2 * GIB),
    ],
)
def test_sizes_that_depend_on_the_machine(text: str, size: int) -> None:
    assert parse_size_wanted(text).resolve(4 * GIB, 3 * GIB) == size


def test_without_a_target_it_is_from_the_whole_ram() -> None:
    assert parse_size_wanted("-1G").resolve(4 * GIB, None) == 3 * GIB


@pytest.mark.parametrize("text", ["50%", "+1G", "-1G"])
def test_what_depends_on_an_unknown_machine(text: str) -> None:
    with pytest.raises(OperatorError, match="not known before QEMU is there") as caught:
        parse_size_wanted(text).resolve(None, None)
    assert caught.value.hint


def test_nothing_may_not_be_left() -> None:
    with pytest.raises(OperatorError, match="5 GiB less than 4 GiB leaves nothing"):
        parse_size_wanted("-5G").resolve(4 * GIB, None)


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "%", "+", "+0", "--1G", "+-1G", "x"])
def test_what_is_no_size_wanted(text: str) -> None:
    with pytest.raises(OperatorError):
        parse_size_wanted(text)
