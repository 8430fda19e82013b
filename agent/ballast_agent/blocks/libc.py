"""The few system calls that Python's standard library does not have."""

from __future__ import annotations

import ctypes
import os

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MNT_DETACH = 2
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(file_system: str, target: str, options: str) -> None:
    """Attach a file system that needs no device; see its manual page.

    Raises:
        OSError: If the kernel refuses.
    """
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
    words = (file_system.encode(), os.fsencode(target), file_system.encode())
    _check(_libc().mount(*words, flags, options.encode()))


def unmount(target: str) -> None:
    """Take a file system away, when nobody uses it any more; see umount2(2).

    Raises:
        OSError: If the kernel refuses.
    """
    _check(_libc().umount2(os.fsencode(target), MNT_DETACH))


def lock_memory() -> None:
    """Keep every page of this process in memory once it has been touched; see mlockall(2).

    Raises:
        OSError: If the kernel refuses.
    """
    _check(_libc().mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT))
