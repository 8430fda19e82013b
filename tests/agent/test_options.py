from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable

import pytest

from ballast_agent.options import byte_count, duration, unix_socket, vsock_address


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("7", 7), ("512M", 512 << 20), ("2g", 2 << 30), ("3KiB", 3 << 10), ("1TB", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert byte_count(text) == size


def test_addresses() -> None:
    assert unix_socket("unix:/run/a:b") == "/run/a:b"
    assert vsock_address("5170") == (5170, 2)
    assert vsock_address("1:99") == (99, 1)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (byte_count, "much"),
        (byte_count, "-1"),
        (byte_count, "1.5G"),
        (duration(1.0, 9.0), "0.9"),
        (duration(1.0, 9.0), "nan"),
        (duration(1.0, 9.0), "soon"),
        (unix_socket, "/path"),
        (unix_socket, "unix:"),
        (vsock_address, "host:1"),
        (vsock_address, ":"),
    ],
)
def test_what_is_none(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not"):
        read(text)
