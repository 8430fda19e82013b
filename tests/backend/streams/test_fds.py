from __future__ import annotations

import os

import pytest

from ballast.streams.fds import FdSet, is_same_description
from ballast_protocol.errors import InternalError
from support.fds import memory_file, none_left_open


def fresh(count: int) -> list[int]:
    return [os.eventfd(0) for _ in range(count)]


def test_what_nobody_took_is_closed() -> None:
    with none_left_open():
        with FdSet(fresh(2)) as fds:
            fds.extend(fresh(1))
            taken = fds.steal()
            assert len(fds) == 2
        os.close(taken)
        assert len(fds) == 0


def test_an_error_leaks_nothing() -> None:
    with none_left_open(), pytest.raises(ZeroDivisionError), FdSet(fresh(3)):
        raise ZeroDivisionError


def test_they_come_in_the_order_in_which_they_arrived() -> None:
    numbers = fresh(2)
    with FdSet(numbers[:1]) as fds:
        fds.extend(numbers[1:])
        assert fds.peek() == numbers[0]
        assert [fds.steal(), fds.steal()] == numbers
    for number in numbers:
        os.close(number)


def test_an_empty_set_has_none_to_give() -> None:
    with pytest.raises(InternalError):
        FdSet().steal()
    with pytest.raises(InternalError):
        FdSet().peek()


@pytest.mark.parametrize("by_kcmp", [False, True])
def test_duplicates_are_told_from_other_descriptors_of_the_file(
    by_kcmp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_kcmp:
        # As on kernels before 6.10, which do not know this command.
        monkeypatch.setattr("ballast.streams.fds._F_DUPFD_QUERY", 999)
    with none_left_open():
        first = memory_file(1)
        duplicate, reopened = os.dup(first), os.open(f"/proc/self/fd/{first}", os.O_RDWR)
        assert is_same_description(first, duplicate)
        assert not is_same_description(first, reopened)
        for fd in (first, duplicate, reopened):
            os.close(fd)
