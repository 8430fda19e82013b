"""The two files that say whose the pool's pages are, and keep them from everybody else.

They are on a hugetlbfs of our own, at one known place, so that an agent finds what another one has
left; they last until the guest reboots, as the pool does.

*claim* says that the pool was empty when it was made and that its pages are the agent's. *reserve*
has as many pages as are reserved: mapping it reserves them, for the file and not for the process.
The mapping is never touched and may not be: a page that was faulted in would be written to, and
would belong to the file instead of the pool.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from ballast_agent.blocks.files import read_text, refused
from ballast_agent.blocks.libc import mount, unmount
from ballast_agent.procfs import parse_mounts
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest_blocks import BLOCK_BYTES

MOUNT_POINT = Path("/run/ballast-agent/huge")

_PROT_NONE = 0


class PoolFiles:
    """The claim and the reservation."""

    def __init__(self, place: Path = MOUNT_POINT, proc: Path = Path("/proc")) -> None:
        """Touch nothing yet.

        Args:
            place: Where our hugetlbfs is, or will be, mounted.
            proc: Where procfs is mounted.
        """
        self._place = place
        self._proc = proc

    @property
    def _claim(self) -> Path:
        return self._place / "claim"

    @property
    def _reserve(self) -> Path:
        return self._place / "reserve"

    def is_claimed(self) -> bool:
        """Tell whether the claim is there."""
        return self._is_mounted() and self._claim.exists()

    def claim(self) -> None:
        """Put the claim there, and mount what it is on."""
        try:
            if not self._is_mounted():
                self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
                mount("hugetlbfs", str(self._place), "pagesize=2M,mode=0700")
            self._claim.touch(mode=0o600)
        except OSError as error:
            raise refused(self._place, "used for a hugetlbfs", error) from error

    def unclaim(self) -> None:
        """Give up the reservation, then the claim."""
        if not self._is_mounted():
            return
        try:
            for path in (self._reserve, self._claim):
                if path.exists():
                    path.unlink()
            unmount(str(self._place))
            self._place.rmdir()
        except OSError as error:
            raise refused(self._place, "cleaned up", error) from error

    def reserve(self, pages: int) -> None:
        """Have so many pages reserved, more than now or fewer.

        Raises:
            OperatorError: If there are not so many free pages that nobody else has reserved.
        """
        try:
            fd = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise refused(self._reserve, "opened", error) from error
        try:
            self._resize(fd, pages)
        finally:
            os.close(fd)

    def _resize(self, fd: int, pages: int) -> None:
        size = os.fstat(fd).st_size
        os.ftruncate(fd, pages * BLOCK_BYTES)
        if not pages:
            return
        try:
            # All of it, even if it is long enough: whoever made it so may have been killed
            # between the two calls. What is reserved already is not reserved twice.
            mmap.mmap(fd, pages * BLOCK_BYTES, flags=mmap.MAP_SHARED, prot=_PROT_NONE).close()
        except OSError as error:
            os.ftruncate(fd, min(size, pages * BLOCK_BYTES))
            raise OperatorError(
                f"the kernel does not reserve {pages} huge pages for us: {error.strerror}",
                hint="does another program in this guest use huge pages?",
            ) from error

    def _is_mounted(self) -> bool:
        mounts = parse_mounts(read_text(self._proc / "self/mountinfo"), "hugetlbfs")
        return str(self._place) in mounts
