"""Survives a peer that takes its memory file away under our mapping.

Touching a page beyond the end of a mapped file, or one that the host has no huge page left for,
raises SIGBUS, which ends the process: all VMs would go down with one hostile or unlucky QEMU. Seals
forbid shrinking, and QEMU's memfds have them; a `memory-backend-file` cannot have any.

So SIGBUS is caught. If the address lies in a mapping that is guarded, an empty page is put in its
place, the access goes on and sees zeros, and the owner of the mapping is told, who gives the memory
up. Any other SIGBUS ends the process as it always did.

The handler is Python code that runs inside the interrupted access. That is sound because nothing
but plain copies touches guarded memory, from this thread, with the interpreter's lock held: no
allocator and no system call of ours is interrupted halfway.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

_PROT_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
"""Private, anonymous, and at exactly this address (MAP_FIXED)."""

_SA_SIGINFO = 4
_ADDRESS_OFFSET = 16
"""Where `si_addr` is in `siginfo_t` on 64-bit Linux (sigaction(2))."""

_MAP_FAILED = ctypes.c_void_p(-1).value

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _SigAction(ctypes.Structure):
    """`struct sigaction` of the C library on 64-bit Linux."""

    _fields_ = (
        ("handler", _Handler),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
]


@dataclass(frozen=True)
class Guarded:
    """One mapping.

    Attributes:
        start: Its address.
        length: Bytes.
        page_bytes: The unit in which it is mapped.
        damaged: Told, from within the access, that a page was gone.
    """

    start: int
    length: int
    page_bytes: int
    damaged: Callable[[], None]


_guarded: dict[int, Guarded] = {}
_is_installed = False


def guard(mapping: mmap.mmap, page_bytes: int, damaged: Callable[[], None]) -> int:
    """Survive missing pages of a mapping; return a key for `release`.

    Args:
        mapping: The mapping, writable.
        page_bytes: The unit in which its file is mapped.
        damaged: Called during the access that found a page gone; must do little and not raise.
    """
    _install()
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    _guarded[start] = Guarded(start, len(mapping), page_bytes, damaged)
    return start


def release(key: int) -> None:
    """Stop guarding a mapping, before it is unmapped."""
    _guarded.pop(key, None)


def _install() -> None:
    """Catch SIGBUS from now on."""
    global _is_installed
    if not _is_installed:
        action = _SigAction(_handler, flags=_SA_SIGINFO)
        if _libc.sigaction(signal.SIGBUS, ctypes.byref(action), None) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        _is_installed = True


def _handle(_signal: int, info: int, _context: int) -> None:
    """Put an empty page where one is missing, or let the signal do what it would have done."""
    address = ctypes.c_uint64.from_address(info + _ADDRESS_OFFSET).value
    for found in tuple(_guarded.values()):
        if found.start <= address < found.start + found.length and _patch(found, address):
            found.damaged()
            return
    # The access is tried again on return, and this time ends the process.
    signal.signal(signal.SIGBUS, signal.SIG_DFL)


def _patch(found: Guarded, address: int) -> bool:
    """Map an empty page over the one that is missing; return whether that worked."""
    size = found.page_bytes
    start = found.start + (address - found.start) // size * size
    got = _libc.mmap(start, size, _PROT_READ_WRITE, _MAP_FLAGS, -1, 0)
    return bool(got != _MAP_FAILED)


_handler = _Handler(_handle)
"""Kept for as long as the process lives: the C library calls it."""
