"""Uses, checks and looks at the guest's memory on behalf of tests, demos and benchmarks.

Whole blocks are copied and compared at a time: under emulation a loop over bytes, or even over
pages, would take longer than everything else together. Every command prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

PAGE_SIZE = 4096
BLOCK_SIZE = 1 << 20

KPF_OFFLINE = 23
"""Bit of a balloon's pages in /proc/kpageflags (include/uapi/linux/kernel-page-flags.h)."""

MAX_WRONG_OFFSETS = 16
"""How many wrong pages are named; all are counted."""

FLAGS_CHUNK_BYTES = 4 << 20


class Pattern:
    """Data that does not compress and differs from block to block.

    Every block is a window into the same random bytes, each starting somewhere else, so that a page
    that was lost, or swapped with another one, shows.
    """

    _STRIDE = 4099  # a prime beyond a page: no two windows in a row look alike at any page

    def __init__(self, seed: int) -> None:
        block = random.Random(seed).randbytes(BLOCK_SIZE)
        self._twice = block + block

    def block(self, index: int) -> bytes:
        """Return the contents of the block number `index`."""
        start = index * self._STRIDE % BLOCK_SIZE
        return self._twice[start : start + BLOCK_SIZE]


class Region:
    """Anonymous memory full of a pattern."""

    def __init__(self, size: int, pattern: Pattern) -> None:
        self._size = size
        self._pattern = pattern
        self._memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def fill(self) -> None:
        """Write every page."""
        for _ in self.filling():
            pass

    def filling(self) -> Iterator[int]:
        """Write every page, a block at a time; yield how many bytes are written."""
        for start, data in self._blocks():
            self._memory[start : start + len(data)] = data
            yield start + len(data)

    def wrong_pages(self, is_stopped: Any = None) -> tuple[int, list[int]]:
        """Compare every page; return the bytes compared and the offsets of pages that differ."""
        verified = 0
        wrong: list[int] = []
        for start, expected in self._blocks():
            if is_stopped is not None and is_stopped():
                break
            found = self._memory[start : start + len(expected)]
            verified += len(expected)
            if found != expected:
                wrong += _differing_pages(start, found, expected)
        return verified, wrong

    def close(self) -> None:
        """Give the memory back to the guest's kernel."""
        self._memory.close()

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        for start in range(0, self._size, BLOCK_SIZE):
            data = self._pattern.block(start // BLOCK_SIZE)
            yield start, data[: self._size - start]


def _differing_pages(start: int, found: bytes, expected: bytes) -> list[int]:
    return [
        start + offset
        for offset in range(0, len(expected), PAGE_SIZE)
        if found[offset : offset + PAGE_SIZE] != expected[offset : offset + PAGE_SIZE]
    ]


def dirty(size: int, seed: int) -> dict[str, Any]:
    """Write `size` bytes of memory, then free it: the host now has to keep pages nobody needs."""
    started = time.monotonic()
    region = Region(size, Pattern(seed))
    region.fill()
    region.close()
    return {"bytes": size, "seconds": time.monotonic() - started}


def fill(size: int, seed: int) -> dict[str, Any]:
    """Write `size` bytes of memory and read every one back."""
    region = Region(size, Pattern(seed))
    region.fill()
    verified, wrong = region.wrong_pages()
    region.close()
    return _verdict(verified, wrong, passes=1)


def verify_loop(size: int, seed: int, stop_file: str, remap: bool) -> dict[str, Any]:
    """Hold `size` bytes and compare them again and again until told to stop.

    Stops when `stop_file` exists or on SIGTERM.

    Args:
        size: Bytes to hold.
        seed: Which pattern.
        stop_file: Path that ends the loop once it exists; empty for none.
        remap: Free and write everything anew after each pass, so that the pages wander through
            the kernel's free lists.
    """
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))

    def is_stopped() -> bool:
        return bool(stopped) or (bool(stop_file) and os.path.exists(stop_file))

    total, passes = 0, 0
    wrong: list[int] = []
    region = Region(size, Pattern(seed))
    region.fill()
    while True:
        verified, pages = region.wrong_pages(is_stopped)
        total, wrong = total + verified, wrong + pages
        if is_stopped():
            return _verdict(total, wrong, passes)
        passes += 1
        if remap:
            region.close()
            region = Region(size, Pattern(seed + passes))
            region.fill()


class ReleaseWatch:
    """Sees how soon the pool of huge pages shrinks when memory is short.

    Attributes:
        seconds: The longest that it took; None if it was not short, or the pool did not shrink.
    """

    def __init__(self, alarm: int) -> None:
        self.seconds: float | None = None
        self._alarm = alarm
        self._short_since: float | None = None
        self._pool = 0

    def look(self, values: dict[str, int], now: float) -> None:
        """Take note of what /proc/meminfo says at a time."""
        pool = values["HugePages_Total"]
        if self._short_since is not None and pool < self._pool:
            self.seconds = max(self.seconds or 0.0, now - self._short_since)
            self._short_since = None
        elif self._short_since is None and pool and values["MemAvailable"] < self._alarm:
            self._short_since = now
        self._pool = pool


def demand(size: int, seed: int, rate: int, alarm: int) -> dict[str, Any]:
    """Ask for memory as fast as a process that has begun to work, and look how that goes.

    Args:
        size: Bytes to write, and to verify in the end.
        seed: Which pattern.
        rate: Bytes a second; 0 for as many as there can be.
        alarm: Below so many available bytes the guest is short of memory.

    Returns:
        `longest_step_seconds` is the time that the slowest block of 1 MiB took; `release_seconds`
        how long the guest was short of memory before huge pages went back.
    """
    region, watch = Region(size, Pattern(seed)), ReleaseWatch(alarm)
    longest, started = 0.0, time.monotonic()
    before = started
    for written in region.filling():
        now = time.monotonic()
        longest = max(longest, now - before)
        watch.look(meminfo(), now)
        if rate:
            time.sleep(max(0.0, started + written / rate - time.monotonic()))
        before = time.monotonic()
    seconds = before - started
    verified, wrong = region.wrong_pages()
    region.close()
    return {
        **_verdict(verified, wrong, passes=1),
        "seconds": seconds,
        "longest_step_seconds": longest,
        "release_seconds": watch.seconds,
    }


def _verdict(verified: int, wrong: list[int], passes: int) -> dict[str, Any]:
    return {
        "verified_bytes": verified,
        "passes": passes,
        "wrong_pages": len(wrong),
        "wrong_offsets": wrong[:MAX_WRONG_OFFSETS],
    }


def runs_with_flag(flags: bytes, bit: int, first_pfn: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (first PFN, count) of the runs of pages that have a flag.

    Args:
        flags: Little-endian 64-bit words as /proc/kpageflags has them.
        bit: Which bit.
        first_pfn: The page that the first word belongs to.
    """
    mask = 1 << bit % 8
    is_set = flags[bit // 8 :: 8].translate(bytes(1 if value & mask else 0 for value in range(256)))
    start = is_set.find(1)
    while start >= 0:
        end = is_set.find(0, start)
        if end < 0:
            end = len(is_set)
        yield first_pfn + start, end - start
        start = is_set.find(1, end)


def flagged_pages(bit: int, path: str = "/proc/kpageflags") -> list[list[int]]:
    """Return [first PFN, count] of all runs of pages with a flag, in ascending order."""
    runs: list[list[int]] = []
    pfn = 0
    with open(path, "rb", buffering=0) as file:
        for chunk in iter(lambda: file.read(FLAGS_CHUNK_BYTES), b""):
            for first, count in runs_with_flag(chunk, bit, pfn):
                if runs and sum(runs[-1]) == first:
                    runs[-1][1] += count
                else:
                    runs.append([first, count])
            pfn += len(chunk) // 8
    return runs


def meminfo(path: str = "/proc/meminfo") -> dict[str, int]:
    """Return /proc/meminfo with its sizes in bytes."""
    values = {}
    with open(path) as file:
        for line in file:
            name, _, rest = line.partition(":")
            number, _, unit = rest.strip().partition(" ")
            values[name] = int(number) * (1024 if unit == "kB" else 1)
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="memtool", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("dirty", "fill", "verify-loop", "demand"):
        command = commands.add_parser(name)
        command.add_argument("--bytes", type=int, required=True)
        command.add_argument("--seed", type=int, default=1)
        if name == "verify-loop":
            command.add_argument("--stop-file", default="")
            command.add_argument("--remap", action="store_true")
        elif name == "demand":
            command.add_argument("--rate", type=int, default=0, help="bytes a second")
            command.add_argument("--alarm", type=int, default=0, help="available bytes")
    flagged = commands.add_parser("ballooned")
    flagged.add_argument("--bit", type=int, default=KPF_OFFLINE)
    commands.add_parser("meminfo")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and print the result as JSON; status 1 if pages are wrong."""
    options = _parser().parse_args(arguments)
    result: Any
    if options.command == "dirty":
        result = dirty(options.bytes, options.seed)
    elif options.command == "fill":
        result = fill(options.bytes, options.seed)
    elif options.command == "verify-loop":
        result = verify_loop(options.bytes, options.seed, options.stop_file, options.remap)
    elif options.command == "demand":
        result = demand(options.bytes, options.seed, options.rate, options.alarm)
    elif options.command == "ballooned":
        result = {"runs": flagged_pages(options.bit)}
    else:
        result = meminfo()
    print(json.dumps(result))
    return 1 if result.get("wrong_pages") else 0


if __name__ == "__main__":
    sys.exit(main())
